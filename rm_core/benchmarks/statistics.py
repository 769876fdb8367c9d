"""How sure figures are, how two runs differ, and where a model is right.

Pure functions of numbers; no benchmark is known here. What is random is seeded, so equal input
gives equal output.
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
    """Where a figure may lie."""

    low: float
    high: float


def wilson(num_correct: float, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a share; at least one item.

    Args:
        num_correct: may be a fraction, where items are right in part.
        num_items: of which those are.
        confidence: 0 to 1, both exclusive.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = num_correct / num_items, z * z / num_items
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / num_items + spread / (4 * num_items))
    # At the ends the formula is exactly 0 or 1, but for rounding.
    low = 0.0 if num_correct <= 0 else (middle - half) / (1 + spread)
    high = 1.0 if num_correct >= num_items else (middle + half) / (1 + spread)
    return Interval(max(0.0, low), min(1.0, high))


def bootstrap_resamples(
    strata: Sequence[Sequence[T]], *, resamples: int, seed: int
) -> Iterator[list[T]]:
    """As many things again, drawn with replacement, over and over: a bootstrap.

    Args:
        strata: what is drawn from, each by itself: items of a subset, or whole clusters of items
            that belong together.
        resamples: how many draws.
        seed: of the draws.
    """
    chance = random.Random(seed)
    for _ in range(resamples):
        yield [one for stratum in strata for one in chance.choices(stratum, k=len(stratum))]


def percentile_interval(scores: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """The interval that has the middle of the scores; None without any."""
    if not scores:
        return None
    ordered, tail = sorted(scores), (1 - confidence) / 2
    return Interval(quantile(ordered, tail), quantile(ordered, 1 - tail))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of numbers in ascending order, with lines between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class McNemar(NamedTuple):
    """Whether two runs on the same items differ in how often they are right.

    Attributes:
        only_first: items that the first run alone has right.
        only_second: items that the second run alone has right.
        exact_p: two-sided, of the binomial distribution.
        chi_square: with the correction of continuity.
        chi_square_p: of one degree of freedom; good for 25 differing items or more.
    """

    only_first: int
    only_second: int
    exact_p: float
    chi_square: float
    chi_square_p: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """McNemar's test, from the items that one of two runs alone has right."""
    differing, fewer = only_first + only_second, min(only_first, only_second)
    if differing == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    # Integers of any size, and one division at the end.
    tail = term = 1
    for k in range(1, fewer + 1):
        term = term * (differing - k + 1) // k
        tail += term
    exact = min(1.0, 2 * tail / 2**differing)
    chi_square = max(0, abs(only_first - only_second) - 1) ** 2 / differing
    return McNemar(only_first, only_second, exact, chi_square, math.erfc(math.sqrt(chi_square / 2)))


class Bin(NamedTuple):
    """Pairs whose number (a probability, a length) lies in a range.

    Attributes:
        low: the least number of the range.
        high: the greatest; belongs to the next range, but for the last.
        num_pairs: how many there are.
        mean: of their numbers.
        accuracy: how much of them is right.
    """

    low: float
    high: float
    num_pairs: int
    mean: float
    accuracy: float


class Calibration(NamedTuple):
    """How far probabilities are from what comes true.

    Attributes:
        bins: of the probability that the answer with the higher reward is the better one; without
            empty ones.
        ece: expected calibration error, 0 to 1: the mean distance, by pairs, of a bin's accuracy
            from its mean probability.
        brier: mean squared distance of sigmoid(margin) from 1, 0 to 1.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float


def compute_calibration(
    margins: Iterable[float], num_bins: int = CALIBRATION_BINS
) -> Calibration | None:
    """How well sigmoid(margin) is a probability; None without margins.

    Args:
        margins: of better over worse answers; a negative one is a mistake. For an equal pair, half
            is right.
        num_bins: of equal width, from 0.5 to 1.
    """
    listed = list(margins)
    if not listed:
        return None
    pairs = [(sigmoid(abs(margin)), _grade_margin(margin)) for margin in listed]
    edges = [0.5 + 0.5 * place / num_bins for place in range(num_bins + 1)]
    bins = tuple(found for found in bin_accuracy(pairs, edges) if found.num_pairs)
    ece = math.fsum(found.num_pairs * abs(found.accuracy - found.mean) for found in bins)
    brier = math.fsum(sigmoid(-margin) ** 2 for margin in listed)
    return Calibration(bins, ece / len(listed), brier / len(listed))


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), for any finite value."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)


def bin_accuracy(pairs: Sequence[tuple[float, float]], edges: Sequence[float]) -> list[Bin]:
    """How much is right in each range of a number.

    Args:
        pairs: a number, and how much is right there, 0 to 1; numbers beyond the edges belong to
            the first or the last range.
        edges: ascending, at least two; each range is from one up to the next.

    Returns:
        One bin a range, also where it is empty; there, mean and accuracy are 0.
    """
    groups: list[list[tuple[float, float]]] = [[] for _ in edges[1:]]
    for pair in pairs:
        place = bisect.bisect_right(edges, pair[0]) - 1
        groups[min(max(place, 0), len(groups) - 1)].append(pair)
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
    """Edges of ranges with about as many numbers each; fewer ranges where numbers are equal.

    At least two edges; without numbers, 0 and 1.
    """
    ordered = sorted(numbers)
    if not ordered:
        return [0.0, 1.0]
    edges = sorted({quantile(ordered, place / num_bins) for place in range(num_bins + 1)})
    return edges if len(edges) > 1 else [edges[0], edges[0] + 1.0]


def _grade_margin(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
