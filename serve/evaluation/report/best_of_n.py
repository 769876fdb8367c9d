"""Curves of best of n, where candidates are graded."""

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
    "truth of the response that the model likes best among n; dashed, of the best and the worst "
    "response that are there"
)


def render_best_of_n(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """A drawing for each set of the benchmark that has curves."""
    each = [one.result.extra.get("best_of_n", {}) for one in evaluations]
    for name in dict.fromkeys(name for sets in each for name in sets):
        found = [sets.get(name) for sets in each]
        if any(curve and curve["n"] for curve in found):
            yield _render_section(name, evaluations, found)


def _render_section(
    name: str, evaluations: Sequence[Evaluation], curve_data: Sequence[Mapping[str, Any] | None]
) -> Markup:
    bounds = max((curve for curve in curve_data if curve), key=lambda curve: len(curve["n"]))
    sizes: list[int] = bounds["n"]
    place = {size: float(at) for at, size in enumerate(sizes)}
    lines = [_build_points(curve, place) for curve in curve_data]
    guides = [
        ((place[size], values[at]), (place[sizes[at + 1]], values[at + 1]))
        for values in (bounds["best"], bounds["worst"])
        for at, size in enumerate(sizes[:-1])
    ]
    lowest = min(*bounds["worst"], *(point.y for line in lines for point in line))
    ticks = [(at, str(size)) for size, at in place.items()]
    across = Scale("n", -0.3, len(sizes) - 0.7, ticks)
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
            CurvePlot(title, lines, across, build_percent_scale("truth", lowest), guides)
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
