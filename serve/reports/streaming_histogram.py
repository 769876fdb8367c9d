"""How numbers are spread, whatever their range and however many: memory stays bounded.

Bins are a power of two wide and start at a multiple of it. When there are too many, each two become
one, so the same numbers in any order end up in the same bins.
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
        start: where the first bar begins.
        width: of each bar.
        counts: of each bar, in order; what lies outside is in none.
    """

    start: float
    width: float
    counts: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """Where bars begin, and where the last one ends."""
        return tuple(self.start + self.width * place for place in range(len(self.counts) + 1))


class StreamingHistogram:
    """Counts of numbers in bins, and what is exact beside them.

    Attributes:
        count: how many numbers.
        positive: how many above 0.
        smallest: of them; infinite if there are none.
        largest: of them; as `smallest`.
    """

    def __init__(self) -> None:
        self.count = self.num_positive = 0
        self.smallest, self.largest = math.inf, -math.inf
        self._sum = 0.0
        self._exponent = _MIN_EXPONENT
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """One more number; finite."""
        self.count += 1
        self.num_positive += value > 0
        self._sum += value
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)
        self._bins[math.floor(math.ldexp(value, -self._exponent))] += 1
        while len(self._bins) > _MAX_BINS:
            self._widen()

    @property
    def mean(self) -> float:
        """NaN if there are none."""
        return self._sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Below which a share of the numbers lies, to the width of a bin.

        Args:
            share: 0 to 1.
        """
        seen = 0
        for index, count in sorted(self._bins.items()):
            seen += count
            if seen >= share * self.count:
                middle = math.ldexp(index + 0.5, self._exponent)
                return min(max(middle, self.smallest), self.largest)
        return math.nan

    def compute_bars(self, start: float, end: float, max_bars: int) -> HistogramBars:
        """The counts between two numbers, in bars that all spreads have alike.

        Args:
            start: all of its bar is there.
            end: as `start`.
            most: bars, with one more for each end.
        """
        exponent = self._exponent
        if end > start:
            exponent = max(exponent, math.ceil(math.log2((end - start) / max_bars)))
        width = math.ldexp(1.0, exponent)
        first, last = math.floor(start / width), math.floor(end / width)
        counts = [0] * (last - first + 1)
        for index, count in self._bins.items():
            place = (index >> (exponent - self._exponent)) - first
            if 0 <= place < len(counts):
                counts[place] += count
        return HistogramBars(first * width, width, tuple(counts))

    def _widen(self) -> None:
        self._exponent += 1
        halved: Counter[int] = Counter()
        for index, count in self._bins.items():
            halved[index >> 1] += count
        self._bins = halved
