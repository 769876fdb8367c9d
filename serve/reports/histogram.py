"""Histograms of any amount of numbers in any range, with bounded memory.

The width of the bins is a power of 2, and bins start at multiples of the width. When there are too
many bins, neighboring bins are merged in pairs. The bins therefore do not depend on the order of
the numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.reports.format import format_number
from serve.reports.plots import Axis, Frame, choose_ticks

_MAX_BINS = 4_096
_MIN_EXPONENT = -20
_MAX_BARS = 48
_HEIGHT = 220
# Values outside are counted and not drawn: a single outlier would squeeze the others into one bar.
_PLOT_QUANTILES = (0.0005, 0.9995)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# As a fraction of the highest bar, so that every bar that is not empty is visible.
_MIN_BAR_HEIGHT = 0.008


@dataclass(frozen=True, slots=True)
class HistogramBars:
    """Bars of a histogram."""

    start: float  # lower edge of the first bar
    width: float  # width of each bar
    # Count of each bar, in order; numbers outside the range are not counted.
    counts: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """Lower edges of the bars, and the upper edge of the last bar."""
        return tuple(self.start + self.width * index for index in range(len(self.counts) + 1))


class StreamingHistogram:
    """Counts of numbers in bins, with exact summary statistics."""

    def __init__(self) -> None:
        self.count = self.num_positive = 0
        self.smallest, self.largest = math.inf, -math.inf  # before the first number
        self._sum = 0.0
        self._exponent = _MIN_EXPONENT
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Add a finite number."""
        self.count += 1
        self.num_positive += value > 0
        self._sum += value
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)
        self._bins[math.floor(math.ldexp(value, -self._exponent))] += 1
        while len(self._bins) > _MAX_BINS:
            self._widen()

    @property
    def mean(self) -> float:
        """Mean of the numbers; NaN before the first number."""
        return self._sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Return the quantile of a share of the numbers, accurate to the width of a bin."""
        num_below = 0
        for index, count in sorted(self._bins.items()):
            num_below += count
            if num_below >= share * self.count:
                middle = math.ldexp(index + 0.5, self._exponent)
                return min(max(middle, self.smallest), self.largest)
        return math.nan

    def compute_bars(self, start: float, end: float, max_bars: int) -> HistogramBars:
        """Return the counts between two numbers, in bars that are the same for all histograms.

        The bars of both ends are complete. There are at most `max_bars`, plus one at each end.
        """
        exponent = self._exponent
        if end > start:
            exponent = max(exponent, math.ceil(math.log2((end - start) / max_bars)))
        width = math.ldexp(1.0, exponent)
        first, last = math.floor(start / width), math.floor(end / width)
        counts = [0] * (last - first + 1)
        for index, count in self._bins.items():
            bar = (index >> (exponent - self._exponent)) - first
            if 0 <= bar < len(counts):
                counts[bar] += count
        return HistogramBars(first * width, width, tuple(counts))

    def _widen(self) -> None:
        self._exponent += 1
        merged: Counter[int] = Counter()
        for index, count in self._bins.items():
            merged[index >> 1] += count
        self._bins = merged


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """A histogram of several series and a table of their quantiles, as templates show them."""

    title: str  # heading of the section
    about: str  # what is counted, and how many outliers are not drawn
    names: Sequence[str]  # names of the series
    frame: Frame  # axes of the plot
    edges: Sequence[float]  # edges of the bars, one more than there are bars
    heights: Sequence[Sequence[float]]  # height of each bar on the vertical axis, by series
    tooltips: Sequence[str]  # text of each bar
    has_zero: bool  # whether 0 is marked
    table_head: Sequence[str]  # heads of the table's columns
    table_rows: Sequence[Sequence[str]]  # quantiles of each series that has numbers


def build_histogram(
    title: str,
    about: str,
    axis: str,
    series: Mapping[str, StreamingHistogram],
    *,
    is_log2: bool = False,
) -> HistogramPlot:
    """Build a histogram of numbers by the name of their series, of which one at least has some.

    With `is_log2`, the numbers are base-2 logarithms, and the axis shows the powers of 2.
    """

    def format_edge(value: float) -> str:
        return f"{2**value:,.0f}" if is_log2 else format_number(value, ".4g")

    filled = [one for one in series.values() if one.count]
    start = min(one.quantile(_PLOT_QUANTILES[0]) for one in filled)
    end = max(one.quantile(_PLOT_QUANTILES[1]) for one in filled)
    bars = [one.compute_bars(start, end, _MAX_BARS) for one in series.values()]
    edges, counts = bars[0].edges, [one.counts for one in bars]
    num_outliers = sum(one.count for one in filled) - sum(map(sum, counts))
    if num_outliers:
        about += f" (outliers that are not drawn: {num_outliers:,})"
    max_count = max(map(max, counts)) or 1
    min_height = _MIN_BAR_HEIGHT * max_count
    x_ticks = choose_ticks(edges[0], edges[-1], 6, whole=is_log2)
    x_axis = Axis(axis, edges[0], edges[-1], [(tick, format_edge(tick)) for tick in x_ticks])
    y_ticks = choose_ticks(0, 1.06 * max_count, 4, whole=True)
    y_axis = Axis("", 0, 1.06 * max_count, [(tick, f"{tick:,.0f}") for tick in y_ticks])
    tooltips = []
    for index, column in enumerate(zip(*counts, strict=True)):
        texts = [f"{count:,}" for count in column]
        if len(series) > 1:
            texts = [f"{text} {name}" for text, name in zip(texts, series, strict=True)]
        low, high = format_edge(edges[index]), format_edge(edges[index + 1])
        tooltips.append(f"{axis} {low} to {high}: {', '.join(texts)}")
    # The mean of logarithms is not the logarithm of the mean.
    means = [] if is_log2 else ["mean"]
    return HistogramPlot(
        title=title,
        about=about,
        names=list(series),
        frame=Frame(x_axis, y_axis, _HEIGHT),
        edges=edges,
        heights=[[max(n, min_height) if n else 0 for n in one] for one in counts],
        tooltips=tooltips,
        has_zero=not is_log2 and edges[0] < 0 < edges[-1],
        table_head=["", *(f"{share:.0%}" for share in _QUANTILES), *means],
        table_rows=[
            [name, *_format_quantiles(one, is_log2)] for name, one in series.items() if one.count
        ],
    )


def _format_quantiles(histogram: StreamingHistogram, is_log2: bool) -> list[str]:
    quantiles = [histogram.quantile(share) for share in _QUANTILES]
    if is_log2:
        return [f"{2**value:,.0f}" for value in quantiles]
    return [format_number(value, ",.2f") for value in (*quantiles, histogram.mean)]
