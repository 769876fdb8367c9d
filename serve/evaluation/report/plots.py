"""How margins are spread, and what accuracy depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from rm_core.benchmarks.statistics import (
    Bin,
    bin_accuracy,
    compute_calibration,
    quantile_edges,
    wilson,
)
from serve.evaluation.report.format import compact, percent, row_names
from serve.evaluation.report.pairs import Pair
from serve.evaluation.result import Evaluation
from serve.reports.curves import Curves, Point, Scale, curves, percent_scale
from serve.reports.document import section
from serve.reports.elements import folded, legend, printed, table
from serve.reports.heat_map import Grid, Sides, heat_maps
from serve.reports.histogram import Histogram, Series, histogram
from serve.reports.streaming_histogram import Spread

_STYLES = ("concise", "detailed", "markdown")
_LENGTH_BINS = 4  # on each side of 0
_PROMPT_BINS = 8

Judged = Sequence[Sequence[Pair]]
"""The pairs of each evaluation."""


def margins(evaluations: Sequence[Evaluation], judged: Judged) -> Iterator[Markup]:
    """The histogram of margins."""
    names = [one.model for one in evaluations] if len(evaluations) > 1 else ["margin"]
    series = []
    for name, pairs in zip(names, judged, strict=True):
        spread = Spread()
        for pair in pairs:
            spread.add(pair.margin)
        series.append(Series(name, spread))
    if any(judged):
        about = "reward of the better response less that of the worse; at 0 and below it is wrong"
        yield histogram(Histogram("Margins", about, "margin", tuple(series)))


def calibrations(evaluations: Sequence[Evaluation], judged: Judged) -> Iterator[Markup]:
    """How often the response with the higher reward is the better one, as the margin promises."""
    found = [compute_calibration(pair.margin for pair in pairs) for pairs in judged]
    if not any(found):
        return
    lines = [_points(one.bins if one else (), "", by_mean=True) for one in found]
    lowest = min(point.interval[0] for line in lines for point in line if point.interval)
    across = Scale(
        "sigmoid of the margin", 0.5, 1.0, [(n / 10, f"{n * 10}%") for n in range(5, 11)]
    )
    up = percent_scale("right", min(0.5, lowest))
    drawing = Curves("Calibration", lines, across, up, guides=(((0.5, 0.5), (1.0, 1.0)),))
    rows = [
        [name, percent(one.ece), f"{one.brier:.4f}"]
        for name, one in zip(_names(evaluations, "all pairs"), found, strict=True)
        if one
    ]
    yield section(
        "Calibration",
        legend([one.model for one in evaluations]),
        curves(drawing),
        table(["", "calibration error (ECE)", "Brier score"], rows),
        about="how often the response of the higher reward is the better one; on the dashed line, "
        "as often as sigmoid(margin) says",
    )


def length_bias(evaluations: Sequence[Evaluation], judged: Judged) -> Iterator[Markup]:
    """Accuracy against how much longer the better response is."""
    longer = [pair.longer for pairs in judged for pair in pairs]
    if not longer:
        return
    edges = _edges_around_zero(longer)
    bins = [bin_accuracy([(pair.longer, pair.right) for pair in one], edges) for one in judged]
    axis = "characters: better less worse"
    zero = edges.index(0.0) if 0.0 in edges else None
    rows = [
        [
            name,
            _share([pair for pair in pairs if pair.longer > 0]),
            _share([pair for pair in pairs if pair.longer < 0]),
        ]
        for name, pairs in zip(_names(evaluations, "right"), judged, strict=True)
    ]
    yield section(
        "Length of responses",
        _by_range(evaluations, bins, edges, axis, zero),
        table(["", "better one is longer", "shorter"], rows),
        _range_table(evaluations, bins, edges, axis),
        about="how often the model is right, by how much longer the better response is; a model "
        "that likes length is right at the right and wrong at the left",
    )


def prompt_lengths(evaluations: Sequence[Evaluation], judged: Judged) -> Iterator[Markup]:
    """Accuracy against the length of the prompt."""
    lengths = [pair.prompt for pairs in judged for pair in pairs]
    if not lengths:
        return
    edges, axis = quantile_edges(lengths, _PROMPT_BINS), "characters of the prompt"
    bins = [bin_accuracy([(pair.prompt, pair.right) for pair in one], edges) for one in judged]
    yield section(
        "Length of prompts",
        _by_range(evaluations, bins, edges, axis, None),
        _range_table(evaluations, bins, edges, axis),
        about="how often the model is right, by how long the prompt is",
    )


def matrices(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """The matrices of RM-Bench, where there are any."""
    for number, one in enumerate(evaluations):
        found = one.figures.extra.get("matrices")
        if found:
            grids = [Grid(domain, cells) for domain, cells in found.items()]
            whose = f": {one.model}" if len(evaluations) > 1 else ""
            sides = Sides("chosen", _STYLES, "rejected", _STYLES)
            yield section(
                f"Styles{whose}",
                heat_maps(f"Styles{whose}", grids, sides, number),
                about="share of items whose chosen response of a style beats the rejected one of a "
                "style; above the diagonal, where the rejected one is the fancier, it is hard",
            )


def _by_range(
    evaluations: Sequence[Evaluation],
    bins: Sequence[Sequence[Bin]],
    edges: Sequence[float],
    axis: str,
    zero: int | None,
) -> Markup:
    """Ranges beside one another, each as wide, since most lengths are small and a few are huge."""
    lines = [_points(one, "characters") for one in bins]
    low = min(point.interval[0] for line in lines for point in line if point.interval)
    up = percent_scale("right", low)
    ticks = [(float(place), compact(edge)) for place, edge in enumerate(edges)]
    guides = () if zero is None else (((float(zero), up.start), (float(zero), up.end)),)
    across = Scale(axis, 0.0, len(edges) - 1.0, ticks)
    drawing = Curves(axis, lines, across, up, guides, apart=True)
    return legend([one.model for one in evaluations]) + curves(drawing)


def _range_table(
    evaluations: Sequence[Evaluation],
    bins: Sequence[Sequence[Bin]],
    edges: Sequence[float],
    axis: str,
) -> Markup:
    head = [
        axis,
        *(text for name in _names(evaluations, "") for text in (_pairs_of(name), "right")),
    ]
    rows = [
        [
            f"{printed(low, ',.0f')} to {printed(high, ',.0f')}",
            *(
                text
                for one in bins
                for text in (f"{one[place].num_pairs:,}", percent(one[place].accuracy))
            ),
        ]
        for place, (low, high) in enumerate(pairwise(edges))
    ]
    return folded("Figures", table(head, rows))


def _points(bins: Sequence[Bin], what: str, by_mean: bool = False) -> list[Point]:
    points = []
    for place, one in enumerate(bins):
        if one.num_pairs:
            interval = wilson(one.accuracy * one.num_pairs, one.num_pairs)
            low, high = (
                (f"{one.low:.0%}", f"{one.high:.0%}")
                if by_mean
                else (printed(one.low, ",.0f"), printed(one.high, ",.0f"))
            )
            hint = f"{low} to {high} {what}: {percent(one.accuracy)} of {one.num_pairs:,} pairs"
            points.append(Point(one.mean if by_mean else place + 0.5, one.accuracy, interval, hint))
    return points


def _edges_around_zero(numbers: Sequence[int]) -> list[float]:
    """As many pairs in each range of a side, with 0 between the sides."""
    below = [number for number in numbers if number < 0]
    above = [number for number in numbers if number > 0]
    edges = quantile_edges(below, _LENGTH_BINS)[:-1] if below else []
    edges.append(0.0)
    edges += quantile_edges(above, _LENGTH_BINS)[1:] if above else []
    return edges if len(edges) > 1 else [0.0, 1.0]


def _names(evaluations: Sequence[Evaluation], alone: str) -> list[str]:
    return row_names([one.model for one in evaluations], alone)


def _pairs_of(name: str) -> str:
    return f"{name}: pairs" if name else "pairs"


def _share(pairs: Sequence[Pair]) -> str:
    return percent(sum(pair.right for pair in pairs) / len(pairs) if pairs else None)
