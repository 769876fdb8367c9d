"""Confidence intervals of all figures of a result: Wilson's for shares, bootstrap for the rest.

Items are drawn again within their subsets, whole clusters where items belong together, so that an
interval is of the same benchmark with other items, not of another mixture of subsets.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rm_core.benchmarks.aggregation import compute_subset_scores, group_by_subset, tally
from rm_core.benchmarks.base import (
    Benchmark,
    BenchmarkResult,
    DecomposableBenchmark,
    ScoredItem,
    SubsetScore,
)
from rm_core.benchmarks.statistics import (
    CONFIDENCE,
    Interval,
    bootstrap_resamples,
    percentile_interval,
    wilson,
)

RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Intervals:
    """Where figures may lie, under the names that the figures have.

    Attributes:
        overall: of the overall figure; None where there is none.
        sections: of each section.
        subsets: of each subset.
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
    """The intervals of a result; the same for the same items in any order.

    Args:
        benchmark: whose figures they are.
        scored: what the figures were made of.
        figures: of those.
        resamples: how often the figures are computed again.
        seed: of the draws.
    """
    if isinstance(benchmark, DecomposableBenchmark):
        again = _bootstrap_sums(benchmark, scored, resamples, seed)
    else:
        again = _bootstrap_results(benchmark, scored, resamples, seed)
    overall = percentile_interval([one.overall for one in again if one.overall is not None])
    return Intervals(
        overall,
        _compute_subset_intervals(result.sections, [one.sections for one in again]),
        _compute_subset_intervals(result.subsets, [one.subsets for one in again]),
    )


def is_proportion(score: SubsetScore) -> bool:
    """Whether the score is a plain share of items, each right or wrong."""
    right = score.num_correct
    if right is None or not float(right).is_integer():
        return False
    return abs(score.score - right / score.num_items) < 1e-12


def _compute_subset_intervals(
    parts: Mapping[str, SubsetScore], again: Sequence[Mapping[str, SubsetScore]]
) -> dict[str, Interval]:
    found = {}
    for name, part in parts.items():
        if is_proportion(part):
            found[name] = wilson(part.num_correct or 0.0, part.num_items, CONFIDENCE)
            continue
        interval = percentile_interval([parts[name].score for parts in again if name in parts])
        if interval is not None:
            found[name] = interval
    return found


def _bootstrap_sums(
    benchmark: DecomposableBenchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> list[BenchmarkResult]:
    """What an item adds is known before the draws, which are sums alone."""
    groups = sorted(group_by_subset(scored).items())
    credits = {name: sorted(benchmark.grade_item(one) for one in group) for name, group in groups}
    chance, again = random.Random(seed), []
    for _ in range(resamples):
        drawn = {
            name: tally(chance.choices(group, k=len(group))) for name, group in credits.items()
        }
        tallies = {name: one for name, one in drawn.items() if one.total}
        overall, sections = benchmark.combine(tallies)
        again.append(BenchmarkResult(overall, sections, compute_subset_scores(tallies, {})))
    return again


def _bootstrap_results(
    benchmark: Benchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> list[BenchmarkResult]:
    """All figures of each draw; clusters stay whole."""
    strata: dict[str, dict[object, list[ScoredItem]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(scored, key=lambda one: one.item.key):
        item = one.item
        strata[item.subset][item.metadata.get("cluster", item.key)].append(one)
    clusters = [list(group.values()) for _, group in sorted(strata.items())]
    drawn = bootstrap_resamples(clusters, resamples=resamples, seed=seed)
    return [benchmark.compute_result(_relabel_clusters(one)) for one in drawn]


def _relabel_clusters(clusters: Sequence[Sequence[ScoredItem]]) -> list[ScoredItem]:
    """The items of clusters; one that was drawn twice is two clusters."""
    return [
        _relabel_item(one, number) if "cluster" in one.item.metadata else one
        for number, cluster in enumerate(clusters)
        for one in cluster
    ]


def _relabel_item(one: ScoredItem, number: int) -> ScoredItem:
    facts = {**one.item.metadata, "cluster": number}
    return ScoredItem(dataclasses.replace(one.item, metadata=facts), one.rewards)
