"""A histogram of any amount of numbers in any range, with bounded memory.

The width of the bins is a power of 2, and bins start at multiples of the width. When there are too
many bins, neighboring bins are merged in pairs. The bins therefore do not depend on the order of
the numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

_MAX_BINS = 4_096
_MIN_EXPONENT = -20


@dataclass(frozen=True, slots=True)
class HistogramBars:
    """Bars of a histogram.

    Attributes:
        start: lower edge of the first bar.
        width: width of each bar.
        counts: count of each bar, in order; numbers outside the range are not counted.
    """

    start: float
    width: float
    counts: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """Lower edges of the bars, and the upper edge of the last bar."""
        return tuple(self.start + self.width * index for index in range(len(self.counts) + 1))


class StreamingHistogram:
    """Counts of numbers in bins, with exact summary statistics.

    Attributes:
        count: amount of numbers.
        num_positive: amount of numbers above 0.
        smallest: smallest number; infinity before the first number.
        largest: largest number; minus infinity before the first number.
    """

    def __init__(self) -> None:
        self.count = self.num_positive = 0
        self.smallest, self.largest = math.inf, -math.inf
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
        """Return the quantile of a share of the numbers, accurate to the width of a bin.

        Args:
            share: share of the numbers below the quantile, from 0 to 1.
        """
        num_below = 0
        for index, count in sorted(self._bins.items()):
            num_below += count
            if num_below >= share * self.count:
                middle = math.ldexp(index + 0.5, self._exponent)
                return min(max(middle, self.smallest), self.largest)
        return math.nan

    def compute_bars(self, start: float, end: float, max_bars: int) -> HistogramBars:
        """Return the counts between two numbers, in bars that are the same for all histograms.

        Args:
            start: lower end; the bar that contains it is complete.
            end: upper end; the bar that contains it is complete.
            max_bars: maximum number of bars, plus one at each end.
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
