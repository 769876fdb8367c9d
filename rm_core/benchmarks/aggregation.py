"""Aggregates the scores of items into subsets and sections, and lists missing items."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from rm_core.benchmarks.base import ItemScore, ScoredItem, SubsetScore, Tally


def group_by_subset(scored: Iterable[ScoredItem]) -> dict[str, list[ScoredItem]]:
    """Group items by subset, in order."""
    groups: dict[str, list[ScoredItem]] = defaultdict(list)
    for scored_item in scored:
        groups[scored_item.item.subset].append(scored_item)
    return dict(groups)


def tally_subsets(
    scored: Iterable[ScoredItem], grade_item: Callable[[ScoredItem], ItemScore]
) -> dict[str, Tally]:
    """Return the tally of each subset by name, except subsets in which no item counts."""
    groups: dict[str, list[ItemScore]] = defaultdict(list)
    for scored_item in scored:
        groups[scored_item.item.subset].append(grade_item(scored_item))
    tallies = {name: tally(item_scores) for name, item_scores in sorted(groups.items())}
    return {name: subset for name, subset in tallies.items() if subset.total}


def tally(item_scores: Iterable[ItemScore]) -> Tally:
    """Sum item scores; the result does not depend on their order."""
    counted = [score for score in item_scores if score.total]
    right = math.fsum(score.right for score in counted)
    return Tally(right, sum(score.total for score in counted), len(counted))


def pool(tallies: Iterable[Tally]) -> Tally | None:
    """Combine tallies, with equal weight for each item; None without tallies."""
    listed = list(tallies)
    if not listed:
        return None
    return Tally(
        math.fsum(subset.right for subset in listed),
        sum(subset.total for subset in listed),
        sum(subset.num_items for subset in listed),
    )


def compute_subset_score(subset: Tally, expected: int | None = None) -> SubsetScore:
    """Return the share of correct comparisons.

    Args:
        subset: tally of the subset or section.
        expected: number of items in the complete benchmark; None if unknown.
    """
    # With several comparisons per item, the number of correct comparisons is not a number of items.
    right = subset.right if subset.total == subset.num_items else None
    return SubsetScore(subset.right / subset.total, subset.num_items, expected, right)


def compute_subset_scores(
    tallies: Mapping[str, Tally], expected: Mapping[str, int]
) -> dict[str, SubsetScore]:
    """Return the score of each tally: first the names of `expected` in their order, then others."""
    names = [name for name in expected if name in tallies]
    names += [name for name in tallies if name not in expected]
    return {name: compute_subset_score(tallies[name], expected.get(name)) for name in names}


def compute_weighted_score(
    tallies: Mapping[str, Tally], weights: Mapping[str, float], expected: Mapping[str, int]
) -> SubsetScore | None:
    """Return the weighted mean of the scores of available subsets; None if there are none."""
    scores = {name: compute_subset_score(tallies[name]) for name in weights if name in tallies}
    if not scores:
        return None
    total = math.fsum(weights[name] for name in scores)
    return SubsetScore(
        score=math.fsum(subset.score * weights[name] for name, subset in scores.items()) / total,
        num_items=sum(subset.num_items for subset in scores.values()),
        num_expected=sum(expected[name] for name in weights),
        num_correct=math.fsum(subset.num_correct or 0.0 for subset in scores.values()),
    )


def mean(values: Iterable[float]) -> float | None:
    """Return the unweighted mean, which does not depend on the order; None without values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def mean_score(scores: Mapping[str, SubsetScore]) -> float | None:
    """Return the unweighted mean of scores; None without scores."""
    return mean(subset.score for subset in scores.values())


def list_missing_items(
    counts: Mapping[str, int], expected: Mapping[str, int], kind: str
) -> list[str]:
    """Return a phrase for each name whose number of items is not the expected number.

    Args:
        counts: number of items by name.
        expected: expected number of items by name.
        kind: what a name denotes in the phrases, such as `subset`.
    """
    return [
        f"{kind} {name}: has {counts.get(name, 0) or 'none'} of {count} items"
        for name, count in expected.items()
        if counts.get(name, 0) != count
    ]


def count_items(scores: Mapping[str, SubsetScore]) -> dict[str, int]:
    """Return the number of items of each score."""
    return {name: subset.num_items for name, subset in scores.items()}


def grade_comparisons(right: Sequence[bool]) -> ItemScore:
    """Return the score of an item with several comparisons."""
    return ItemScore(sum(right), len(right))
