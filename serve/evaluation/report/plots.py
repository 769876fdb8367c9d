"""Plots of the distribution of margins, and of accuracy by margin, length and style."""

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
    """Yield the histogram of margins."""
    names = [one.model for one in evaluations] if len(evaluations) > 1 else ["margin"]
    series = []
    for name, pairs in zip(names, pairs_by_model, strict=True):
        distribution = StreamingHistogram()
        for pair in pairs:
            distribution.add(pair.margin)
        series.append(Series(name, distribution))
    if any(pairs_by_model):
        about = (
            "reward of the better response minus reward of the worse response; the model is wrong "
            "at 0 and below"
        )
        yield render_histogram(HistogramPlot("Margins", about, "margin", tuple(series)))


def render_calibration(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """Yield the calibration curve: accuracy against the probability that the margin predicts."""
    calibrations = [compute_calibration(pair.margin for pair in pairs) for pairs in pairs_by_model]
    if not any(calibrations):
        return
    lines = [_build_points(one.bins if one else (), "", by_mean=True) for one in calibrations]
    lowest = min(point.interval[0] for line in lines for point in line if point.interval)
    x_axis = Scale(
        "sigmoid of the margin", 0.5, 1.0, [(n / 10, f"{n * 10}%") for n in range(5, 11)]
    )
    y_axis = build_percent_scale("right", min(0.5, lowest))
    plot = CurvePlot("Calibration", lines, x_axis, y_axis, guides=(((0.5, 0.5), (1.0, 1.0)),))
    rows = [
        [name, format_percent(one.ece), f"{one.brier:.4f}"]
        for name, one in zip(_get_names(evaluations, "all pairs"), calibrations, strict=True)
        if one
    ]
    yield section(
        "Calibration",
        legend([one.model for one in evaluations]),
        render_curves(plot),
        table(["", "calibration error (ECE)", "Brier score"], rows),
        about="how often the response with the higher reward is the better one; the dashed line "
        "is sigmoid(margin)",
    )


def render_length_bias(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """Yield the plot of accuracy against the length difference of the responses."""
    differences = [pair.length_difference for pairs in pairs_by_model for pair in pairs]
    if not differences:
        return
    edges = _compute_edges_around_zero(differences)
    bins = [
        bin_accuracy([(pair.length_difference, pair.correct) for pair in one], edges)
        for one in pairs_by_model
    ]
    axis = "characters: better minus worse"
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
        table(["", "better response is longer", "shorter"], rows),
        _build_range_table(evaluations, bins, edges, axis),
        about="accuracy by length difference of the better and the worse response; a model that "
        "prefers long responses is more accurate on the right than on the left",
    )


def render_prompt_lengths(
    evaluations: Sequence[Evaluation], pairs_by_model: PairsByModel
) -> Iterator[Markup]:
    """Yield the plot of accuracy against the length of the prompt."""
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
        about="accuracy by length of the prompt",
    )


def render_style_matrices(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield the style matrices of RM-Bench, if the benchmark has them."""
    for number, one in enumerate(evaluations):
        matrices = one.result.extra.get("matrices")
        if matrices:
            grids = [Grid(domain, cells) for domain, cells in matrices.items()]
            suffix = f": {one.model}" if len(evaluations) > 1 else ""
            labels = GridLabels("chosen", _STYLES, "rejected", _STYLES)
            yield section(
                f"Styles{suffix}",
                render_heat_maps(f"Styles{suffix}", grids, labels, number),
                about="share of items whose chosen response of one style beats the rejected "
                "response of another style; the hard cells are above the diagonal, where the "
                "rejected response has the more elaborate style",
            )


def _plot_by_range(
    evaluations: Sequence[Evaluation],
    bins: Sequence[Sequence[Bin]],
    edges: Sequence[float],
    axis: str,
    zero: int | None,
) -> Markup:
    """Render all ranges with equal width, since most lengths are small and a few are huge."""
    lines = [_build_points(one, "characters") for one in bins]
    low = min(point.interval[0] for line in lines for point in line if point.interval)
    y_axis = build_percent_scale("right", low)
    ticks = [(float(index), format_compact(edge)) for index, edge in enumerate(edges)]
    guides = () if zero is None else (((float(zero), y_axis.start), (float(zero), y_axis.end)),)
    x_axis = Scale(axis, 0.0, len(edges) - 1.0, ticks)
    plot = CurvePlot(axis, lines, x_axis, y_axis, guides, offset_lines=True)
    return legend([one.model for one in evaluations]) + render_curves(plot)


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
                for text in (f"{one[index].num_pairs:,}", format_percent(one[index].accuracy))
            ),
        ]
        for index, (low, high) in enumerate(pairwise(edges))
    ]
    return details_block("Numbers", table(head, rows))


def _build_points(bins: Sequence[Bin], unit: str, by_mean: bool = False) -> list[Point]:
    points = []
    for index, one in enumerate(bins):
        if one.num_pairs:
            interval = wilson(one.accuracy * one.num_pairs, one.num_pairs)
            low, high = (
                (f"{one.low:.0%}", f"{one.high:.0%}")
                if by_mean
                else (format_number(one.low, ",.0f"), format_number(one.high, ",.0f"))
            )
            accuracy = format_percent(one.accuracy)
            tooltip = f"{low} to {high} {unit}: {accuracy} of {one.num_pairs:,} pairs"
            x = one.mean if by_mean else index + 0.5
            points.append(Point(x, one.accuracy, interval, tooltip))
    return points


def _compute_edges_around_zero(numbers: Sequence[int]) -> list[float]:
    """Return edges of ranges with equally many pairs on each side, with 0 between the sides."""
    negative = [number for number in numbers if number < 0]
    positive = [number for number in numbers if number > 0]
    edges = quantile_edges(negative, _LENGTH_BINS)[:-1] if negative else []
    edges.append(0.0)
    edges += quantile_edges(positive, _LENGTH_BINS)[1:] if positive else []
    return edges if len(edges) > 1 else [0.0, 1.0]


def _get_names(evaluations: Sequence[Evaluation], alone: str) -> list[str]:
    return get_row_names([one.model for one in evaluations], alone)


def _format_pairs_heading(name: str) -> str:
    return f"{name}: pairs" if name else "pairs"


def _format_accuracy(pairs: Sequence[Pair]) -> str:
    return format_percent(sum(pair.correct for pair in pairs) / len(pairs) if pairs else None)
