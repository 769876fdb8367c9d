"""Best-of-n curves of benchmarks with graded candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from serve.evaluation.report.format import format_percent, get_row_names
from serve.evaluation.result import Evaluation
from serve.reports.curves import CurvePlot, Point, Scale, build_percent_scale, render_curves
from serve.reports.document import section
from serve.reports.elements import legend, table

_ABOUT = (
    "truth of the response with the highest reward among n; dashed: truth of the best and of the "
    "worst response"
)


def render_best_of_n(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield a section for each set of the benchmark that has curves."""
    sets_by_model = [one.result.extra.get("best_of_n", {}) for one in evaluations]
    for name in dict.fromkeys(name for sets in sets_by_model for name in sets):
        curves = [sets.get(name) for sets in sets_by_model]
        if any(curve and curve["n"] for curve in curves):
            yield _render_section(name, evaluations, curves)


def _render_section(
    name: str, evaluations: Sequence[Evaluation], curve_data: Sequence[Mapping[str, Any] | None]
) -> Markup:
    bounds = max((curve for curve in curve_data if curve), key=lambda curve: len(curve["n"]))
    sizes: list[int] = bounds["n"]
    positions = {size: float(index) for index, size in enumerate(sizes)}
    lines = [_build_points(curve, positions) for curve in curve_data]
    guides = [
        ((positions[size], values[i]), (positions[sizes[i + 1]], values[i + 1]))
        for values in (bounds["best"], bounds["worst"])
        for i, size in enumerate(sizes[:-1])
    ]
    lowest = min(*bounds["worst"], *(point.y for line in lines for point in line))
    ticks = [(position, str(size)) for size, position in positions.items()]
    x_axis = Scale("n", -0.3, len(sizes) - 0.7, ticks)
    title = f"Best of n: {name}"
    names = get_row_names([one.model for one in evaluations], "truth")
    rows = [
        [model, *(f"{value:.1%}" for value in curve["reward"])]
        for model, curve in zip(names, curve_data, strict=True)
        if curve
    ]
    return section(
        title,
        legend([one.model for one in evaluations]),
        render_curves(
            CurvePlot(title, lines, x_axis, build_percent_scale("truth", lowest), guides)
        ),
        table(["n", *map(str, sizes)], rows),
        about=_ABOUT,
    )


def _build_points(curve: Mapping[str, Any] | None, positions: Mapping[int, float]) -> list[Point]:
    if curve is None:
        return []
    return [
        Point(positions[size], value, None, f"best of {size}: {format_percent(value)}")
        for size, value in zip(curve["n"], curve["reward"], strict=True)
    ]
