"""Curves of best of n, where candidates are graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from serve.evaluation.report.format import percent, row_names
from serve.evaluation.result import Evaluation
from serve.reports.curves import Curves, Point, Scale, curves, percent_scale
from serve.reports.document import section
from serve.reports.elements import legend, table

_ABOUT = (
    "truth of the response that the model likes best among n; dashed, of the best and the worst "
    "response that are there"
)


def curves_of(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """A drawing for each set of the benchmark that has curves."""
    each = [one.figures.extra.get("best_of_n", {}) for one in evaluations]
    for name in dict.fromkeys(name for sets in each for name in sets):
        found = [sets.get(name) for sets in each]
        if any(curve and curve["n"] for curve in found):
            yield _section(name, evaluations, found)


def _section(
    name: str, evaluations: Sequence[Evaluation], found: Sequence[Mapping[str, Any] | None]
) -> Markup:
    bounds = max((curve for curve in found if curve), key=lambda curve: len(curve["n"]))
    sizes: list[int] = bounds["n"]
    place = {size: float(at) for at, size in enumerate(sizes)}
    lines = [_points(curve, place) for curve in found]
    guides = [
        ((place[size], values[at]), (place[sizes[at + 1]], values[at + 1]))
        for values in (bounds["best"], bounds["worst"])
        for at, size in enumerate(sizes[:-1])
    ]
    lowest = min(*bounds["worst"], *(point.up for line in lines for point in line))
    ticks = [(at, str(size)) for size, at in place.items()]
    across = Scale("n", -0.3, len(sizes) - 0.7, ticks)
    title = f"Best of n: {name}"
    names = row_names([one.model for one in evaluations], "truth")
    rows = [
        [model, *(f"{value:.1%}" for value in curve["reward"])]
        for model, curve in zip(names, found, strict=True)
        if curve
    ]
    return section(
        title,
        legend([one.model for one in evaluations]),
        curves(Curves(title, lines, across, percent_scale("truth", lowest), guides)),
        table(["n", *map(str, sizes)], rows),
        about=_ABOUT,
    )


def _points(curve: Mapping[str, Any] | None, place: Mapping[int, float]) -> list[Point]:
    if curve is None:
        return []
    return [
        Point(place[size], value, None, f"best of {size}: {percent(value)}")
        for size, value in zip(curve["n"], curve["reward"], strict=True)
    ]
