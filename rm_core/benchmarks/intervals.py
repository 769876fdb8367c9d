"""Confidence intervals of all figures of a result: Wilson's for shares, bootstrap for the rest.

Items are drawn again within their subsets, whole clusters where items belong together, so that an
interval is of the same benchmark with other items, not of another mixture of subsets.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rm_core.benchmarks.records import Benchmark, Figures, Item, Part, ScoredItem
from rm_core.benchmarks.statistics import CONFIDENCE, Interval, draws, percentiles, wilson

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


def intervals(
    benchmark: Benchmark,
    scored: Sequence[ScoredItem],
    figures: Figures,
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
    strata = _strata(scored)
    again = [
        benchmark.figures(_copies(drawn)) for drawn in draws(strata, resamples=resamples, seed=seed)
    ]
    overall = percentiles([one.overall for one in again if one.overall is not None])
    return Intervals(
        overall,
        _of_parts(figures.sections, again, lambda one: one.sections),
        _of_parts(figures.subsets, again, lambda one: one.subsets),
    )


def is_share(part: Part) -> bool:
    """Whether the score is a plain share of items, each right or wrong."""
    right = part.num_correct
    if right is None or not float(right).is_integer():
        return False
    return abs(part.score - right / part.num_items) < 1e-12


def _of_parts(
    parts: Mapping[str, Part],
    again: Sequence[Figures],
    pick: Callable[[Figures], Mapping[str, Part]],
) -> dict[str, Interval]:
    found = {}
    for name, part in parts.items():
        if is_share(part):
            found[name] = wilson(part.num_correct or 0.0, part.num_items, CONFIDENCE)
            continue
        interval = percentiles([pick(one)[name].score for one in again if name in pick(one)])
        if interval is not None:
            found[name] = interval
    return found


def _strata(scored: Sequence[ScoredItem]) -> list[list[list[ScoredItem]]]:
    """Clusters of each subset, all in the order of their keys."""
    strata: dict[str, dict[object, list[ScoredItem]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(scored, key=lambda one: one.item.key):
        item = one.item
        strata[item.subset][item.facts.get("cluster", item.key)].append(one)
    return [list(clusters.values()) for _, clusters in sorted(strata.items())]


def _copies(clusters: Sequence[Sequence[ScoredItem]]) -> list[ScoredItem]:
    """The items of clusters; one that was drawn twice is two clusters."""
    copies = []
    for number, cluster in enumerate(clusters):
        for one in cluster:
            item = _of_cluster(one.item, number) if "cluster" in one.item.facts else one.item
            copies.append(ScoredItem(item, one.rewards))
    return copies


def _of_cluster(item: Item, number: int) -> Item:
    return dataclasses.replace(item, facts={**item.facts, "cluster": number})
