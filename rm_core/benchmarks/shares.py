"""Parts of shares: how much of each subset is right, how sections weigh, what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from rm_core.benchmarks.records import Part, ScoredItem


def by_subset(scored: Iterable[ScoredItem]) -> dict[str, list[ScoredItem]]:
    """The items of each subset, in order."""
    groups: dict[str, list[ScoredItem]] = defaultdict(list)
    for one in scored:
        groups[one.item.subset].append(one)
    return dict(groups)


def share(credits: Sequence[float], expected: int | None = None) -> Part:
    """The part in which each item counts as much as it is right; at least one item.

    Args:
        credits: 0 to 1 of each item.
        expected: items of the whole part.
    """
    correct = math.fsum(credits)  # The same in any order.
    return Part(correct / len(credits), len(credits), expected, correct)


def shares(
    scored: Iterable[ScoredItem],
    expected: Mapping[str, int],
    credit: Callable[[ScoredItem], float],
) -> dict[str, Part]:
    """The share of each subset that is there: those of `expected` in its order, then others."""
    groups = by_subset(scored)
    names = [*(name for name in expected if name in groups), *sorted(groups.keys() - expected)]
    return {
        name: share([credit(one) for one in groups[name]], expected.get(name)) for name in names
    }


def weighted(
    parts: Mapping[str, Part], weights: Mapping[str, float], expected: Mapping[str, int]
) -> Part | None:
    """A section: the weighted mean of those of its subsets that are there; None without any."""
    there = {name: parts[name] for name in weights if name in parts}
    if not there:
        return None
    total = math.fsum(weights[name] for name in there)
    return Part(
        score=math.fsum(part.score * weights[name] for name, part in there.items()) / total,
        num_items=sum(part.num_items for part in there.values()),
        num_expected=sum(expected[name] for name in weights),
        num_correct=math.fsum(part.num_correct or 0.0 for part in there.values()),
    )


def mean(values: Iterable[float]) -> float | None:
    """The plain mean, the same in any order; None without any."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def mean_of(parts: Mapping[str, Part]) -> float | None:
    """The plain mean of scores."""
    return mean(part.score for part in parts.values())


def lacks(parts: Mapping[str, Part], expected: Mapping[str, int], what: str) -> list[str]:
    """A phrase for each part that is not there, or not whole, or has more than it should.

    Args:
        parts: those that are there.
        expected: how many items each should have.
        what: how phrases call a part.
    """
    phrases = []
    for name, count in expected.items():
        found = parts[name].num_items if name in parts else 0
        if found == 0:
            phrases.append(f"{what} {name}: none of {count} items")
        elif found != count:
            phrases.append(f"{what} {name}: {found} of {count} items")
    return phrases
