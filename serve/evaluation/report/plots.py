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
from serve.evaluation.report.format import format_compact, format_percent, get_row_names
from serve.evaluation.report.pairs import Pair
from serve.evaluation.result import Evaluation
from serve.reports.curves import CurvePlot, Point, Scale, build_percent_scale, render_curves
from serve.reports.document import section
from serve.reports.elements import details_block, format_number, legend, table
from serve.reports.heat_map import Grid, GridLabels, render_heat_maps
from serve.reports.histogram import HistogramPlot, Series, render_histogram
from serve.reports.streaming_histogram import StreamingHistogram

_STYLES = ("concise", "detailed", "markdown")
_LENGTH_BINS = 4  # on each side of 0
_PROMPT_BINS = 8

PairsByModel = Sequence[Sequence[Pair]]
"""The pairs of each evaluation."""


def render_margins(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """The histogram of margins."""
    names = [one.model for one in evaluations] if len(evaluations) > 1 else ["margin"]
    series = []
    for name, pairs in zip(names, pairs_by_model, strict=True):
        spread = StreamingHistogram()
        for pair in pairs:
            spread.add(pair.margin)
        series.append(Series(name, spread))
    if any(pairs_by_model):
        about = "reward of the better response less that of the worse; at 0 and below it is wrong"
        yield render_histogram(HistogramPlot("Margins", about, "margin", tuple(series)))


def render_calibration(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """How often the response with the higher reward is the better one, as the margin promises."""
    found = [compute_calibration(pair.margin for pair in pairs) for pairs in pairs_by_model]
    if not any(found):
        return
    lines = [_build_points(one.bins if one else (), "", by_mean=True) for one in found]
    lowest = min(point.interval[0] for line in lines for point in line if point.interval)
    across = Scale(
        "sigmoid of the margin", 0.5, 1.0, [(n / 10, f"{n * 10}%") for n in range(5, 11)]
    )
    up = build_percent_scale("right", min(0.5, lowest))
    drawing = CurvePlot("Calibration", lines, across, up, guides=(((0.5, 0.5), (1.0, 1.0)),))
    rows = [
        [name, format_percent(one.ece), f"{one.brier:.4f}"]
        for name, one in zip(_get_names(evaluations, "all pairs"), found, strict=True)
        if one
    ]
    yield section(
        "Calibration",
        legend([one.model for one in evaluations]),
        render_curves(drawing),
        table(["", "calibration error (ECE)", "Brier score"], rows),
        about="how often the response of the higher reward is the better one; on the dashed line, "
        "as often as sigmoid(margin) says",
    )


def render_length_bias(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """Accuracy against how much longer the better response is."""
    longer = [pair.length_difference for pairs in pairs_by_model for pair in pairs]
    if not longer:
        return
    edges = _edges_around_zero(longer)
    bins = [
        bin_accuracy([(pair.length_difference, pair.correct) for pair in one], edges)
        for one in pairs_by_model
    ]
    axis = "characters: better less worse"
    zero = edges.index(0.0) if 0.0 in edges else None
    rows = [
        [
            name,
            _format_accuracy([pair for pair in pairs if pair.length_difference > 0]),
            _format_accuracy([pair for pair in pairs if pair.length_difference < 0]),
        ]
        for name, pairs in zip(_get_names(evaluations, "right"), pairs_by_model, strict=True)
    ]
    yield section(
        "Length of responses",
        _plot_by_range(evaluations, bins, edges, axis, zero),
        table(["", "better one is longer", "shorter"], rows),
        _build_range_table(evaluations, bins, edges, axis),
        about="how often the model is right, by how much longer the better response is; a model "
        "that likes length is right at the right and wrong at the left",
    )


def render_prompt_lengths(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """Accuracy against the length of the prompt."""
    lengths = [pair.prompt_length for pairs in pairs_by_model for pair in pairs]
    if not lengths:
        return
    edges, axis = quantile_edges(lengths, _PROMPT_BINS), "characters of the prompt"
    bins = [
        bin_accuracy([(pair.prompt_length, pair.correct) for pair in one], edges)
        for one in pairs_by_model
    ]
    yield section(
        "Length of prompts",
        _plot_by_range(evaluations, bins, edges, axis, None),
        _build_range_table(evaluations, bins, edges, axis),
        about="how often the model is right, by how long the prompt is",
    )


def render_style_matrices(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """The matrices of RM-Bench, where there are any."""
    for number, one in enumerate(evaluations):
        found = one.result.extra.get("matrices")
        if found:
            grids = [Grid(domain, cells) for domain, cells in found.items()]
            whose = f": {one.model}" if len(evaluations) > 1 else ""
            sides = GridLabels("chosen", _STYLES, "rejected", _STYLES)
            yield section(
                f"Styles{whose}",
                render_heat_maps(f"Styles{whose}", grids, sides, number),
                about="share of items whose chosen response of a style beats the rejected one of a "
                "style; above the diagonal, where the rejected one is the fancier, it is hard",
            )


def _plot_by_range(
    evaluations: Sequence[Evaluation],
    bins: Sequence[Sequence[Bin]],
    edges: Sequence[float],
    axis: str,
    zero: int | None,
) -> Markup:
    """Ranges beside one another, each as wide, since most lengths are small and a few are huge."""
    lines = [_build_points(one, "characters") for one in bins]
    low = min(point.interval[0] for line in lines for point in line if point.interval)
    up = build_percent_scale("right", low)
    ticks = [(float(place), format_compact(edge)) for place, edge in enumerate(edges)]
    guides = () if zero is None else (((float(zero), up.start), (float(zero), up.end)),)
    across = Scale(axis, 0.0, len(edges) - 1.0, ticks)
    drawing = CurvePlot(axis, lines, across, up, guides, offset_lines=True)
    return legend([one.model for one in evaluations]) + render_curves(drawing)


def _build_range_table(
    evaluations: Sequence[Evaluation],
    bins: Sequence[Sequence[Bin]],
    edges: Sequence[float],
    axis: str,
) -> Markup:
    head = [
        axis,
        *(
            text
            for name in _get_names(evaluations, "")
            for text in (_format_pairs_heading(name), "right")
        ),
    ]
    rows = [
        [
            f"{format_number(low, ',.0f')} to {format_number(high, ',.0f')}",
            *(
                text
                for one in bins
                for text in (f"{one[place].num_pairs:,}", format_percent(one[place].accuracy))
            ),
        ]
        for place, (low, high) in enumerate(pairwise(edges))
    ]
    return details_block("Figures", table(head, rows))


def _build_points(bins: Sequence[Bin], what: str, by_mean: bool = False) -> list[Point]:
    points = []
    for place, one in enumerate(bins):
        if one.num_pairs:
            interval = wilson(one.accuracy * one.num_pairs, one.num_pairs)
            low, high = (
                (f"{one.low:.0%}", f"{one.high:.0%}")
                if by_mean
                else (format_number(one.low, ",.0f"), format_number(one.high, ",.0f"))
            )
            hint = (
                f"{low} to {high} {what}: {format_percent(one.accuracy)} of {one.num_pairs:,} pairs"
            )
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


def _get_names(evaluations: Sequence[Evaluation], alone: str) -> list[str]:
    return get_row_names([one.model for one in evaluations], alone)


def _format_pairs_heading(name: str) -> str:
    return f"{name}: pairs" if name else "pairs"


def _format_accuracy(pairs: Sequence[Pair]) -> str:
    return format_percent(sum(pair.correct for pair in pairs) / len(pairs) if pairs else None)
