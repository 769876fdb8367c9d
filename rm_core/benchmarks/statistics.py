"""Statistics of results: confidence intervals, comparison of two runs, calibration.

Pure functions of numbers, independent of benchmarks. Random draws are seeded, so equal input gives
equal output.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypeVar

T = TypeVar("T")

CONFIDENCE = 0.95
CALIBRATION_BINS = 10


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(num_correct: float, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's interval of a share.

    Args:
        num_correct: number of correct items; may be a fraction if items are right in part.
        num_items: number of items, at least 1.
        confidence: confidence level, 0 to 1, both exclusive.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = num_correct / num_items, z * z / num_items
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / num_items + spread / (4 * num_items))
    # At the ends the formula gives 0 or 1 up to rounding.
    low = 0.0 if num_correct <= 0 else (middle - half) / (1 + spread)
    high = 1.0 if num_correct >= num_items else (middle + half) / (1 + spread)
    return Interval(max(0.0, low), min(1.0, high))


def bootstrap_resamples(
    strata: Sequence[Sequence[T]], *, resamples: int, seed: int
) -> Iterator[list[T]]:
    """Yield bootstrap resamples: each stratum is drawn with replacement, in its size.

    Args:
        strata: groups that are resampled separately: items of a subset, or clusters of items that
            belong together.
        resamples: number of resamples.
        seed: seed of the draws.
    """
    generator = random.Random(seed)
    for _ in range(resamples):
        yield [item for stratum in strata for item in generator.choices(stratum, k=len(stratum))]


def percentile_interval(scores: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the central interval that contains a share of the scores; None without scores."""
    if not scores:
        return None
    ordered, tail = sorted(scores), (1 - confidence) / 2
    return Interval(quantile(ordered, tail), quantile(ordered, 1 - tail))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of numbers in ascending order, with linear interpolation."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


class McNemar(NamedTuple):
    """McNemar's test of whether two runs on the same items differ in accuracy.

    Attributes:
        only_first: number of items that only the first run has right.
        only_second: number of items that only the second run has right.
        exact_p: two-sided p-value of the binomial distribution.
        chi_square: test statistic with continuity correction.
        chi_square_p: p-value with one degree of freedom; accurate for 25 differing items or more.
    """

    only_first: int
    only_second: int
    exact_p: float
    chi_square: float
    chi_square_p: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Compute McNemar's test from the numbers of items that only one of two runs has right."""
    differing, fewer = only_first + only_second, min(only_first, only_second)
    if differing == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    # Integers of arbitrary size, and one division at the end.
    tail = term = 1
    for k in range(1, fewer + 1):
        term = term * (differing - k + 1) // k
        tail += term
    exact = min(1.0, 2 * tail / 2**differing)
    chi_square = max(0, abs(only_first - only_second) - 1) ** 2 / differing
    return McNemar(only_first, only_second, exact, chi_square, math.erfc(math.sqrt(chi_square / 2)))


class Bin(NamedTuple):
    """Pairs whose number (a probability, a length) is in a range.

    Attributes:
        low: lower edge of the range, inclusive.
        high: upper edge of the range, exclusive except in the last range.
        num_pairs: number of pairs.
        mean: mean of the pairs' numbers.
        accuracy: share of pairs that are right.
    """

    low: float
    high: float
    num_pairs: int
    mean: float
    accuracy: float


class Calibration(NamedTuple):
    """How well predicted probabilities match observed accuracy.

    Attributes:
        bins: bins of the probability that the answer with the higher reward is the better answer,
            without empty bins.
        ece: expected calibration error, 0 to 1: the mean distance of a bin's accuracy from its
            mean probability, weighted by pairs.
        brier: mean squared distance of sigmoid(margin) from 1, 0 to 1.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float


def compute_calibration(
    margins: Iterable[float], num_bins: int = CALIBRATION_BINS
) -> Calibration | None:
    """Compute how well sigmoid(margin) is calibrated as a probability; None without margins.

    Args:
        margins: reward of the better minus the worse answer of each pair; a negative margin is a
            mistake, and a margin of 0 counts as half right.
        num_bins: number of bins of equal width, from 0.5 to 1.
    """
    listed = list(margins)
    if not listed:
        return None
    pairs = [(sigmoid(abs(margin)), _grade_margin(margin)) for margin in listed]
    edges = [0.5 + 0.5 * index / num_bins for index in range(num_bins + 1)]
    bins = tuple(group for group in bin_accuracy(pairs, edges) if group.num_pairs)
    ece = math.fsum(group.num_pairs * abs(group.accuracy - group.mean) for group in bins)
    brier = math.fsum(sigmoid(-margin) ** 2 for margin in listed)
    return Calibration(bins, ece / len(listed), brier / len(listed))


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)) for any finite value, without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)


def bin_accuracy(pairs: Sequence[tuple[float, float]], edges: Sequence[float]) -> list[Bin]:
    """Compute the accuracy in each range of a number.

    Args:
        pairs: number and correctness (0 to 1) of each pair; numbers beyond the edges belong to the
            first or the last range.
        edges: edges of the ranges in ascending order, at least two.

    Returns:
        One bin for each range; the mean and accuracy of an empty bin are 0.
    """
    groups: list[list[tuple[float, float]]] = [[] for _ in edges[1:]]
    for pair in pairs:
        index = bisect.bisect_right(edges, pair[0]) - 1
        groups[min(max(index, 0), len(groups) - 1)].append(pair)
    return [
        Bin(
            low,
            high,
            len(group),
            math.fsum(number for number, _ in group) / len(group) if group else 0.0,
            math.fsum(right for _, right in group) / len(group) if group else 0.0,
        )
        for low, high, group in zip(edges, edges[1:], groups, strict=False)
    ]


def quantile_edges(numbers: Iterable[float], num_bins: int = 10) -> list[float]:
    """Return edges of ranges with about equally many numbers; fewer ranges if numbers are equal.

    There are at least two edges; without numbers, the edges are 0 and 1.
    """
    ordered = sorted(numbers)
    if not ordered:
        return [0.0, 1.0]
    edges = sorted({quantile(ordered, index / num_bins) for index in range(num_bins + 1)})
    return edges if len(edges) > 1 else [edges[0], edges[0] + 1.0]


def _grade_margin(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
