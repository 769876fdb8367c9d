"""Statistics of results: confidence intervals, calibration, accuracy by range.

Shares have Wilson's intervals, other scores bootstrap intervals. The bootstrap resamples items
within their subsets, and complete clusters where items belong together, so that an interval
describes the same benchmark with other items, not another mixture of subsets. A subset with one
item does not show how much its items differ, so scores that contain it have no bootstrap interval.
Random draws are seeded, so equal input gives equal output.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import numpy as np

from rm_core import sigmoid
from rm_core.benchmarks.aggregation import compute_subset_scores, group_by_subset, mean_score
from rm_core.benchmarks.base import (
    Benchmark,
    BenchmarkResult,
    DecomposableBenchmark,
    ScoredItem,
    SubsetScore,
    Tally,
)

T = TypeVar("T")

CONFIDENCE = 0.95
RESAMPLES = 200
CALIBRATION_BINS = 10
# Metrics that are not computed from sums over the items of subsets, and the number of items up to
# which all resamples are computed completely for them: about 15 s for RM-Bench.
_UNSUMMED = ("difficulty", "metrics")
_MAX_COMPLETE = 2_000


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


def wilson(num_correct: float, num_items: int) -> Interval:
    """Return Wilson's 95% interval of a share.

    scipy and statsmodels have it too, but `skyreward eval` works without the extra `reports`, and
    scipy's takes no fraction.

    Args:
        num_correct: number of correct items; may be a fraction if items are right in part.
        num_items: number of items, at least 1.
    """
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
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


def percentile_interval(scores: Sequence[float]) -> Interval | None:
    """Return the central interval that contains 95% of the scores; None if none differ."""
    if len(set(scores)) < 2:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, (tail, 1 - tail))
    return Interval(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Intervals:
    """Confidence intervals of the scores of a `BenchmarkResult`, under the same names.

    A score has none if there are too few items: one in a subset, or several that are all equal.

    Attributes:
        overall: interval of the overall score; None without an overall score too.
        sections: interval of each section's score.
        subsets: interval of each subset's score.
    """

    overall: Interval | None
    sections: Mapping[str, Interval]
    subsets: Mapping[str, Interval]


def compute_intervals(
    benchmark: Benchmark,
    scored: Sequence[ScoredItem],
    result: BenchmarkResult,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """Compute the intervals of a result; they do not depend on the order of items.

    Args:
        benchmark: benchmark of the result.
        scored: items from which the result was computed.
        result: result for these items.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    resampled = list(_resample_results(benchmark, scored, resamples, seed))
    # All scores of which a subset with one item, or one cluster, is a part.
    alone = benchmark.compute_result(_find_items_alone(scored))
    overall = percentile_interval([r.overall for r in resampled if r.overall is not None])
    return Intervals(
        overall if alone.overall is None else None,
        _compute_subset_intervals(result.sections, [r.sections for r in resampled], alone.sections),
        _compute_subset_intervals(result.subsets, [r.subsets for r in resampled], alone.subsets),
    )


def compute_difference_intervals(
    benchmark: Benchmark,
    first: Sequence[ScoredItem],
    second: Sequence[ScoredItem],
    collect: Callable[[BenchmarkResult], Mapping[str, float | None]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute the intervals of the differences of two runs on the same items, second minus first.

    The bootstrap is paired: each resample has the same items of both runs.

    Args:
        benchmark: benchmark of both runs.
        first: items with the numbers of the first run.
        second: the same items with the numbers of the second run.
        collect: returns the metrics of a result by name.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Returns:
        Intervals by metric. A metric has none if too few items decide it, or if no resample
        differs.
    """
    result = benchmark.compute_result(first)
    has_metrics = not result.extra.keys().isdisjoint(_UNSUMMED)
    is_complete = has_metrics and len(first) <= _MAX_COMPLETE
    runs = (
        _resample_results(benchmark, run, resamples, seed, is_complete=is_complete)
        for run in (first, second)
    )
    differences: dict[str, list[float]] = {name: [] for name in collect(result)}
    for before, after in zip(*(map(collect, run) for run in runs), strict=True):
        for name, values in differences.items():
            value, other = before.get(name), after.get(name)
            if value is not None and other is not None:
                values.append(other - value)
    alone = collect(benchmark.compute_result(_find_items_alone(first)))
    intervals = {
        name: percentile_interval(values)
        for name, values in differences.items()
        if alone.get(name) is None
    }
    return {name: interval for name, interval in intervals.items() if interval is not None}


def is_proportion(score: SubsetScore) -> bool:
    """Return whether a score is the share of correct items, each either right or wrong."""
    right = score.num_correct
    if right is None or not float(right).is_integer():
        return False
    return abs(score.score - right / score.num_items) < 1e-12


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
        for (low, high), group in zip(pairwise(edges), groups, strict=True)
    ]


def quantile_edges(numbers: Sequence[float], num_bins: int = 10) -> list[float]:
    """Return edges of ranges with about equally many numbers; fewer ranges if numbers are equal.

    There are at least two edges; without numbers, the edges are 0 and 1.
    """
    if not numbers:
        return [0.0, 1.0]
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, num_bins + 1))).tolist()
    return edges if len(edges) > 1 else [edges[0], edges[0] + 1.0]


def _compute_subset_intervals(
    scores: Mapping[str, SubsetScore],
    resampled: Sequence[Mapping[str, SubsetScore]],
    without_bootstrap: Container[str],
) -> dict[str, Interval]:
    intervals = {}
    for name, subset in scores.items():
        if is_proportion(subset):
            intervals[name] = wilson(subset.num_correct or 0.0, subset.num_items)
            continue
        interval = percentile_interval([r[name].score for r in resampled if name in r])
        if interval is not None and name not in without_bootstrap:
            intervals[name] = interval
    return intervals


def _find_items_alone(scored: Sequence[ScoredItem]) -> list[ScoredItem]:
    """Return the items of subsets that have one item, or one cluster."""
    return [
        scored_item
        for clusters in _group_by_cluster(scored).values()
        if len(clusters) == 1
        for cluster in clusters.values()
        for scored_item in cluster
    ]


def _resample_results(
    benchmark: Benchmark,
    scored: Sequence[ScoredItem],
    resamples: int,
    seed: int,
    *,
    is_complete: bool = False,
) -> Iterator[BenchmarkResult]:
    """Yield the result of each resample. Equal items and seeds give the same items.

    Args:
        benchmark: benchmark of the items.
        scored: items with their numbers.
        resamples: number of resamples.
        seed: seed of the resamples.
        is_complete: whether results have what sums over items do not give, which takes longer.
    """
    if isinstance(benchmark, DecomposableBenchmark) and not is_complete:
        return _bootstrap_sums(benchmark, scored, resamples, seed)
    return _bootstrap_results(benchmark, scored, resamples, seed)


def _bootstrap_sums(
    benchmark: DecomposableBenchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> Iterator[BenchmarkResult]:
    """Grade every item once, then sum the scores of each resample."""
    generator = np.random.default_rng(seed)
    sums = {}
    for name, group in sorted(group_by_subset(scored).items()):
        scores = [benchmark.grade_item(one) for one in sorted(group, key=lambda one: one.item.key)]
        columns = np.array([(one.right, one.total, one.total > 0) for one in scores], float)
        drawn = generator.integers(len(scores), size=(resamples, len(scores)))
        sums[name] = columns[drawn].sum(axis=1)
    for index in range(resamples):
        tallies = {
            name: Tally(float(right), int(total), int(num_items))
            for name, rows in sums.items()
            for right, total, num_items in (rows[index],)
            if total
        }
        overall, sections = benchmark.combine(tallies)
        extra = {"mean_of_sections": mean_score(sections)}
        yield BenchmarkResult(overall, sections, compute_subset_scores(tallies, {}), extra)


def _bootstrap_results(
    benchmark: Benchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> Iterator[BenchmarkResult]:
    """Compute the complete result of each resample; clusters are kept together."""
    clusters = [list(group.values()) for _, group in sorted(_group_by_cluster(scored).items())]
    for drawn in bootstrap_resamples(clusters, resamples=resamples, seed=seed):
        yield benchmark.compute_result(_relabel_clusters(drawn))


def _group_by_cluster(
    scored: Iterable[ScoredItem],
) -> dict[str, dict[object, list[ScoredItem]]]:
    """Group items by subset and cluster, in an order that does not depend on theirs."""
    groups: dict[str, dict[object, list[ScoredItem]]] = defaultdict(lambda: defaultdict(list))
    for scored_item in sorted(scored, key=lambda scored_item: scored_item.item.key):
        item = scored_item.item
        groups[item.subset][item.metadata.get("cluster", item.key)].append(scored_item)
    return groups


def _relabel_clusters(clusters: Sequence[Sequence[ScoredItem]]) -> list[ScoredItem]:
    """Return the items of clusters; a cluster that was drawn twice becomes two clusters."""
    return [
        _relabel_item(scored_item, number)
        if "cluster" in scored_item.item.metadata
        else scored_item
        for number, cluster in enumerate(clusters)
        for scored_item in cluster
    ]


def _relabel_item(scored_item: ScoredItem, number: int) -> ScoredItem:
    metadata = {**scored_item.item.metadata, "cluster": number}
    item = dataclasses.replace(scored_item.item, metadata=metadata)
    return scored_item._replace(item=item)


def _grade_margin(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
