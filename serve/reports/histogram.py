"""How numbers are spread, as bars; of several things, one over the other."""

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
# What lies beyond is said and not drawn: a single number far away would make one bar of all others.
_PLOT_QUANTILES = (0.0005, 0.9995)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Of the highest bar: of what is there at all, a line can be seen.
_MIN_BAR_HEIGHT = 0.008


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers that are drawn in one colour."""

    name: str
    distribution: StreamingHistogram


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """What is drawn, and what is said of it.

    Attributes:
        title: its heading.
        about: what is counted.
        axis: what the numbers are.
        series: at least one that has numbers.
        powers: whether the numbers are exponents of 2, of which the axis shows the powers.
    """

    title: str
    about: str
    axis: str
    series: tuple[Series, ...]
    is_log2: bool = False


def render_histogram(plot: HistogramPlot) -> Markup:
    """A section with the drawing, and the quantiles below it."""
    start, end = _find_range(plot.series)
    bars = [series.distribution.compute_bars(start, end, _MAX_BARS) for series in plot.series]
    outside = sum(
        s.distribution.count - sum(b.counts) for s, b in zip(plot.series, bars, strict=True)
    )
    about = plot.about
    if outside:
        about += f" (far away and not drawn: {outside:,})"
    return section(
        plot.title,
        legend([series.name for series in plot.series]),
        render_svg(f"{plot.title}: {about}", _HEIGHT, lambda figure: _draw(figure, plot, bars)),
        _build_quantile_table(plot),
        about=about,
    )


def _find_range(series: Sequence[Series]) -> tuple[float, float]:
    spreads = [one.distribution for one in series if one.distribution.count]
    low, high = _PLOT_QUANTILES
    return min(s.quantile(low) for s in spreads), max(s.quantile(high) for s in spreads)


def _draw(figure: Figure, plot: HistogramPlot, bars: Sequence[HistogramBars]) -> None:
    axes: Axes = figure.subplots()
    most = max(count for one in bars for count in one.counts) or 1
    edges = bars[0].edges
    for number, one in enumerate(bars):
        heights = [max(count, _MIN_BAR_HEIGHT * most) if count else 0 for count in one.counts]
        colour = series_colour(number)
        if len(bars) == 1:
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            axes.bar(middles, heights, 0.9 * one.width, color=colour)
        else:
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(heights, edges, color=colour, linewidth=1.4)
    if not plot.is_log2 and edges[0] < 0 < edges[-1]:
        axes.plot([0, 0], [0, 1.04 * most], color=TEXT, linewidth=1, dashes=(4, 3))
    # Over all, so that a whole column answers the pointer.
    for place, low in enumerate(edges[:-1]):
        column = axes.bar(low, most, bars[0].width, align="edge", color=LINE)
        add_tooltip(column[0], _format_tooltip(plot, bars, place), hover_only=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.06 * most)
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
    # The mean of logarithms is no mean of what they stand for.
    head = ["", *(f"{share:.0%}" for share in _QUANTILES), *(() if plot.is_log2 else ("mean",))]
    rows = []
    for series in plot.series:
        spread = series.distribution
        if not spread.count:
            continue
        values = [spread.quantile(share) for share in _QUANTILES]
        if plot.is_log2:
            rows.append([series.name, *(f"{2**value:,.0f}" for value in values)])
        else:
            rows.append(
                [series.name, *(format_number(value, ",.2f") for value in [*values, spread.mean])]
            )
    return table(head, rows)
