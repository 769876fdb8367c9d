"""Confidence intervals of a result's scores: Wilson intervals for shares, bootstrap for the rest.

The bootstrap resamples items within their subsets, and complete clusters where items belong
together, so that an interval describes the same benchmark with other items, not another mixture of
subsets.
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
    """Confidence intervals of the scores of a `BenchmarkResult`, under the same names.

    Attributes:
        overall: interval of the overall score; None without an overall score.
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
    if isinstance(benchmark, DecomposableBenchmark):
        resampled = _bootstrap_sums(benchmark, scored, resamples, seed)
    else:
        resampled = _bootstrap_results(benchmark, scored, resamples, seed)
    overall = percentile_interval([r.overall for r in resampled if r.overall is not None])
    return Intervals(
        overall,
        _compute_subset_intervals(result.sections, [r.sections for r in resampled]),
        _compute_subset_intervals(result.subsets, [r.subsets for r in resampled]),
    )


def is_proportion(score: SubsetScore) -> bool:
    """Return whether a score is the share of correct items, each either right or wrong."""
    right = score.num_correct
    if right is None or not float(right).is_integer():
        return False
    return abs(score.score - right / score.num_items) < 1e-12


def _compute_subset_intervals(
    scores: Mapping[str, SubsetScore], resampled: Sequence[Mapping[str, SubsetScore]]
) -> dict[str, Interval]:
    intervals = {}
    for name, subset in scores.items():
        if is_proportion(subset):
            intervals[name] = wilson(subset.num_correct or 0.0, subset.num_items, CONFIDENCE)
            continue
        interval = percentile_interval([r[name].score for r in resampled if name in r])
        if interval is not None:
            intervals[name] = interval
    return intervals


def _bootstrap_sums(
    benchmark: DecomposableBenchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> list[BenchmarkResult]:
    """Grade every item once, then sum the scores of each resample."""
    groups = sorted(group_by_subset(scored).items())
    item_scores = {
        name: sorted(benchmark.grade_item(scored_item) for scored_item in group)
        for name, group in groups
    }
    generator, results = random.Random(seed), []
    for _ in range(resamples):
        drawn = {
            name: tally(generator.choices(group, k=len(group)))
            for name, group in item_scores.items()
        }
        tallies = {name: subset for name, subset in drawn.items() if subset.total}
        overall, sections = benchmark.combine(tallies)
        results.append(BenchmarkResult(overall, sections, compute_subset_scores(tallies, {})))
    return results


def _bootstrap_results(
    benchmark: Benchmark, scored: Sequence[ScoredItem], resamples: int, seed: int
) -> list[BenchmarkResult]:
    """Compute the complete result of each resample; clusters are kept together."""
    strata: dict[str, dict[object, list[ScoredItem]]] = defaultdict(lambda: defaultdict(list))
    for scored_item in sorted(scored, key=lambda scored_item: scored_item.item.key):
        item = scored_item.item
        strata[item.subset][item.metadata.get("cluster", item.key)].append(scored_item)
    clusters = [list(group.values()) for _, group in sorted(strata.items())]
    drawn = bootstrap_resamples(clusters, resamples=resamples, seed=seed)
    return [benchmark.compute_result(_relabel_clusters(resample)) for resample in drawn]


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
    return ScoredItem(item, scored_item.rewards)
