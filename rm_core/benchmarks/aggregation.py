"""From what each item adds to the parts of a figure: subsets, sections, and what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from rm_core.benchmarks.base import ItemScore, ScoredItem, SubsetScore, Tally


def group_by_subset(scored: Iterable[ScoredItem]) -> dict[str, list[ScoredItem]]:
    """The items of each subset, in order."""
    groups: dict[str, list[ScoredItem]] = defaultdict(list)
    for one in scored:
        groups[one.item.subset].append(one)
    return dict(groups)


def tally_subsets(
    scored: Iterable[ScoredItem], grade_item: Callable[[ScoredItem], ItemScore]
) -> dict[str, Tally]:
    """The tally of each subset by name; of those alone in which something counts."""
    groups: dict[str, list[ItemScore]] = defaultdict(list)
    for one in scored:
        groups[one.item.subset].append(grade_item(one))
    tallies = {name: tally(credits) for name, credits in sorted(groups.items())}
    return {name: one for name, one in tallies.items() if one.total}


def tally(credits: Iterable[ItemScore]) -> Tally:
    """The sum, the same in any order."""
    counting = [one for one in credits if one.total]
    right = math.fsum(one.right for one in counting)
    return Tally(right, sum(one.total for one in counting), len(counting))


def pool(tallies: Iterable[Tally]) -> Tally | None:
    """Several as one, each item of equal weight; None without any."""
    listed = list(tallies)
    if not listed:
        return None
    return Tally(
        math.fsum(one.right for one in listed),
        sum(one.total for one in listed),
        sum(one.num_items for one in listed),
    )


def compute_subset_score(one: Tally, expected: int | None = None) -> SubsetScore:
    """The share that is right, of `expected` items in the whole benchmark."""
    # Where items are of several comparisons each, their number says nothing about the share.
    right = one.right if one.total == one.num_items else None
    return SubsetScore(one.right / one.total, one.num_items, expected, right)


def compute_subset_scores(
    tallies: Mapping[str, Tally], expected: Mapping[str, int]
) -> dict[str, SubsetScore]:
    """A part for each tally: those of `expected` in its order, then the others."""
    names = [name for name in expected if name in tallies]
    names += [name for name in tallies if name not in expected]
    return {name: compute_subset_score(tallies[name], expected.get(name)) for name in names}


def compute_weighted_score(
    tallies: Mapping[str, Tally], weights: Mapping[str, float], expected: Mapping[str, int]
) -> SubsetScore | None:
    """The weighted mean of the scores of those that are there; None without any."""
    there = {name: compute_subset_score(tallies[name]) for name in weights if name in tallies}
    if not there:
        return None
    total = math.fsum(weights[name] for name in there)
    return SubsetScore(
        score=math.fsum(part.score * weights[name] for name, part in there.items()) / total,
        num_items=sum(part.num_items for part in there.values()),
        num_expected=sum(expected[name] for name in weights),
        num_correct=math.fsum(part.num_correct or 0.0 for part in there.values()),
    )


def mean(values: Iterable[float]) -> float | None:
    """The plain mean, the same in any order; None without any."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def mean_score(scores: Mapping[str, SubsetScore]) -> float | None:
    """The plain mean of scores."""
    return mean(part.score for part in scores.values())


def list_missing_items(
    counts: Mapping[str, int], expected: Mapping[str, int], what: str
) -> list[str]:
    """A phrase for each part that is not there, or has not as many items as it should.

    Args:
        counts: of the items that are there.
        expected: how many there should be.
        what: how phrases call a part.
    """
    return [
        f"{what} {name}: {counts.get(name, 0) or 'none'} of {count} items"
        for name, count in expected.items()
        if counts.get(name, 0) != count
    ]


def count_items(scores: Mapping[str, SubsetScore]) -> dict[str, int]:
    """The number of items of each part."""
    return {name: part.num_items for name, part in scores.items()}


def grade_comparisons(right: Sequence[bool]) -> ItemScore:
    """What an item of several comparisons adds."""
    return ItemScore(sum(right), len(right))
