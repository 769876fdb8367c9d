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
from serve.reports.elements import legend, printed, table
from serve.reports.streaming_histogram import Bars, Spread
from serve.reports.svg import drawn, hint

_MOST_BARS = 48
_HEIGHT = 220
# What lies beyond is said and not drawn: a single number far away would make one bar of all others.
_DRAWN = (0.0005, 0.9995)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Of the highest bar: of what is there at all, a line can be seen.
_LEAST = 0.008


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers that are drawn in one colour."""

    name: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Histogram:
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
    powers: bool = False


def histogram(what: Histogram) -> Markup:
    """A section with the drawing, and the quantiles below it."""
    start, end = _borders(what.series)
    bars = [series.spread.bars(start, end, _MOST_BARS) for series in what.series]
    outside = sum(s.spread.count - sum(b.counts) for s, b in zip(what.series, bars, strict=True))
    about = what.about
    if outside:
        about += f" (far away and not drawn: {outside:,})"
    return section(
        what.title,
        legend([series.name for series in what.series]),
        drawn(f"{what.title}: {about}", _HEIGHT, lambda figure: _draw(figure, what, bars)),
        _quantiles(what),
        about=about,
    )


def _borders(series: Sequence[Series]) -> tuple[float, float]:
    spreads = [one.spread for one in series if one.spread.count]
    low, high = _DRAWN
    return min(s.quantile(low) for s in spreads), max(s.quantile(high) for s in spreads)


def _draw(figure: Figure, what: Histogram, bars: Sequence[Bars]) -> None:
    axes: Axes = figure.subplots()
    most = max(count for one in bars for count in one.counts) or 1
    edges = bars[0].edges
    for number, one in enumerate(bars):
        heights = [max(count, _LEAST * most) if count else 0 for count in one.counts]
        colour = series_colour(number)
        if len(bars) == 1:
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            axes.bar(middles, heights, 0.9 * one.width, color=colour)
        else:
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(heights, edges, color=colour, linewidth=1.4)
    if not what.powers and edges[0] < 0 < edges[-1]:
        axes.plot([0, 0], [0, 1.04 * most], color=TEXT, linewidth=1, dashes=(4, 3))
    # Over all, so that a whole column answers the pointer.
    for place, low in enumerate(edges[:-1]):
        column = axes.bar(low, most, bars[0].width, align="edge", color=LINE)
        hint(column[0], _column(what, bars, place), alone=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.06 * most)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=what.powers))
    axes.xaxis.set_major_formatter(lambda value, _: _label(what, value))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(what.axis)


def _column(what: Histogram, bars: Sequence[Bars], place: int) -> str:
    low, high = bars[0].edges[place : place + 2]
    counts = [
        f"{one.counts[place]:,} {series.name}" if len(bars) > 1 else f"{one.counts[place]:,}"
        for one, series in zip(bars, what.series, strict=True)
    ]
    return f"{what.axis} {_label(what, low)} to {_label(what, high)}: {', '.join(counts)}"


def _label(what: Histogram, value: float) -> str:
    if what.powers:
        return f"{2**value:,.0f}"
    return printed(value, ".4g")


def _quantiles(what: Histogram) -> Markup:
    # The mean of logarithms is no mean of what they stand for.
    head = ["", *(f"{share:.0%}" for share in _QUANTILES), *(() if what.powers else ("mean",))]
    rows = []
    for series in what.series:
        spread = series.spread
        if not spread.count:
            continue
        values = [spread.quantile(share) for share in _QUANTILES]
        if what.powers:
            rows.append([series.name, *(f"{2**value:,.0f}" for value in values)])
        else:
            rows.append(
                [series.name, *(printed(value, ",.2f") for value in [*values, spread.mean])]
            )
    return table(head, rows)
