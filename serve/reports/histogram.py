"""Histograms of one or several series, with a table of quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serve.reports.colours import LINE, TEXT, series_colour
from serve.reports.document import section
from serve.reports.elements import format_number, legend, table
from serve.reports.streaming_histogram import HistogramBars, StreamingHistogram
from serve.reports.svg import add_tooltip, render_svg

_MAX_BARS = 48
_HEIGHT = 220
# Values outside are counted and not drawn: a single outlier would squeeze the others into one bar.
_PLOT_QUANTILES = (0.0005, 0.9995)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# As a fraction of the highest bar, so that every bar that is not empty is visible.
_MIN_BAR_HEIGHT = 0.008


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers that are drawn in one color."""

    name: str
    distribution: StreamingHistogram


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """A histogram and its texts.

    Attributes:
        title: heading of the section.
        about: description of what is counted.
        axis: title of the axis.
        series: series of which at least one has numbers.
        is_log2: whether the numbers are base-2 logarithms; the axis shows the powers of 2.
    """

    title: str
    about: str
    axis: str
    series: tuple[Series, ...]
    is_log2: bool = False


def render_histogram(plot: HistogramPlot) -> Markup:
    """Render a section with the histogram and a table of quantiles."""
    start, end = _find_range(plot.series)
    bars = [series.distribution.compute_bars(start, end, _MAX_BARS) for series in plot.series]
    num_outliers = sum(
        s.distribution.count - sum(b.counts) for s, b in zip(plot.series, bars, strict=True)
    )
    about = plot.about
    if num_outliers:
        about += f" (outliers that are not drawn: {num_outliers:,})"
    return section(
        plot.title,
        legend([series.name for series in plot.series]),
        render_svg(f"{plot.title}: {about}", _HEIGHT, lambda figure: _draw(figure, plot, bars)),
        _build_quantile_table(plot),
        about=about,
    )


def _find_range(series: Sequence[Series]) -> tuple[float, float]:
    distributions = [one.distribution for one in series if one.distribution.count]
    low, high = _PLOT_QUANTILES
    return min(d.quantile(low) for d in distributions), max(d.quantile(high) for d in distributions)


def _draw(figure: Figure, plot: HistogramPlot, bars: Sequence[HistogramBars]) -> None:
    axes: Axes = figure.subplots()
    max_count = max(count for one in bars for count in one.counts) or 1
    edges = bars[0].edges
    for number, one in enumerate(bars):
        min_height = _MIN_BAR_HEIGHT * max_count
        heights = [max(count, min_height) if count else 0 for count in one.counts]
        color = series_colour(number)
        if len(bars) == 1:
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            axes.bar(middles, heights, 0.9 * one.width, color=color)
        else:
            axes.stairs(heights, edges, fill=True, color=color, alpha=0.22, linewidth=0)
            axes.stairs(heights, edges, color=color, linewidth=1.4)
    if not plot.is_log2 and edges[0] < 0 < edges[-1]:
        axes.plot([0, 0], [0, 1.04 * max_count], color=TEXT, linewidth=1, dashes=(4, 3))
    # Drawn last and at full height, so that the whole column shows the tooltip.
    for index, low in enumerate(edges[:-1]):
        column = axes.bar(low, max_count, bars[0].width, align="edge", color=LINE)
        add_tooltip(column[0], _format_tooltip(plot, bars, index), hover_only=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.06 * max_count)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=plot.is_log2))
    axes.xaxis.set_major_formatter(lambda value, _: _format_tick(plot, value))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(plot.axis)


def _format_tooltip(plot: HistogramPlot, bars: Sequence[HistogramBars], index: int) -> str:
    low, high = bars[0].edges[index : index + 2]
    counts = [
        f"{one.counts[index]:,} {series.name}" if len(bars) > 1 else f"{one.counts[index]:,}"
        for one, series in zip(bars, plot.series, strict=True)
    ]
    return (
        f"{plot.axis} {_format_tick(plot, low)} to {_format_tick(plot, high)}: {', '.join(counts)}"
    )


def _format_tick(plot: HistogramPlot, value: float) -> str:
    if plot.is_log2:
        return f"{2**value:,.0f}"
    return format_number(value, ".4g")


def _build_quantile_table(plot: HistogramPlot) -> Markup:
    # The mean of logarithms is not the logarithm of the mean.
    head = ["", *(f"{share:.0%}" for share in _QUANTILES), *(() if plot.is_log2 else ("mean",))]
    rows = []
    for series in plot.series:
        distribution = series.distribution
        if not distribution.count:
            continue
        values = [distribution.quantile(share) for share in _QUANTILES]
        if plot.is_log2:
            rows.append([series.name, *(f"{2**value:,.0f}" for value in values)])
        else:
            values.append(distribution.mean)
            rows.append([series.name, *(format_number(value, ",.2f") for value in values)])
    return table(head, rows)
