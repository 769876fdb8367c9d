"""What must hold of every benchmark, whatever the rewards: any order, bounds, ties, monotony."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import read, whole

from rm_core.benchmarks.base import BenchmarkResult, Item, ScoredItem, SubsetScore
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark

NAMES = list(BENCHMARKS)
# Few values, so that ties are common.
VALUES = (-1.5, 0.0, 0.25, 1.0)


@functools.cache
def some_items(name: str) -> tuple[Item, ...]:
    """Items of every subset, and both rows of some numbers of Ties."""
    rows: list[Item] = []
    seen: dict[str, int] = {}
    for item in read(BENCHMARKS[name], whole(name)):
        seen[item.subset] = seen.get(item.subset, 0) + 1
        if seen[item.subset] <= 4:
            rows.append(item)
    return tuple(rows)


def rewards_of(items: Sequence[Item], chance: random.Random) -> list[ScoredItem]:
    return [ScoredItem(item, [chance.choice(VALUES) for _ in item.responses]) for item in items]


def all_scores(figures: BenchmarkResult) -> Iterator[float]:
    parts: list[Mapping[str, SubsetScore]] = [figures.sections, figures.subsets]
    for group in parts:
        yield from (part.score for part in group.values())
    if figures.overall is not None:
        yield figures.overall


SEEDS = st.integers(0, 2**32)


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_order_does_not_matter_by_a_single_bit(name: str, seed: int) -> None:
    chance = random.Random(seed)
    made, scored = BENCHMARKS[name], rewards_of(some_items(name), chance)
    expected = made.compute_result(scored)
    chance.shuffle(scored)
    assert made.compute_result(scored) == expected


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_scores_are_bounded(name: str, seed: int) -> None:
    chance = random.Random(seed)
    scored = rewards_of(some_items(name), chance)
    some = chance.sample(scored, chance.randint(0, len(scored)))
    figures = BENCHMARKS[name].compute_result(some)
    for score in all_scores(figures):
        assert -0.01 <= score <= 1.01
    for part in [*figures.sections.values(), *figures.subsets.values()]:
        assert 0 < part.num_items <= len(some)
        if part.num_correct is not None:
            assert 0 <= part.num_correct <= part.num_items


@pytest.mark.parametrize("name", NAMES)
def test_the_best_and_the_worst_of_rewards(name: str) -> None:
    made, items = BENCHMARKS[name], some_items(name)

    def by_rank(item: Item, sign: float) -> list[float]:
        better = {pair.better for pair in item.preferences}
        return [sign * (place in better) for place in range(len(item.responses))]

    best = made.compute_result([ScoredItem(item, by_rank(item, 1.0)) for item in items])
    worst = made.compute_result([ScoredItem(item, by_rank(item, -1.0)) for item in items])
    assert best.overall == pytest.approx(1.01 if name == "rewardbench2" else 1.0, abs=0.02)
    assert min(all_scores(best)) >= 1.0
    assert worst.overall is not None
    assert worst.overall <= 0.0
    assert max(all_scores(worst)) <= 0.0


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_ties_never_help(name: str, seed: int) -> None:
    """Lowering a worse answer from a tie never lowers a score; in both orders for JudgeBench."""
    made = build_benchmark(name, orders="both") if name == "judgebench" else BENCHMARKS[name]
    scored = rewards_of(some_items(name), random.Random(seed))
    broken = []
    for item, rewards in scored:
        better = {pair.better for pair in item.preferences}
        # A little less for every answer that is not better than another: ties alone change.
        changed = [
            reward if place in better else reward - 1e-6 for place, reward in enumerate(rewards)
        ]
        broken.append(ScoredItem(item, changed))
    before, after = made.compute_result(scored), made.compute_result(broken)
    for section, part in before.sections.items():
        assert part.score <= after.sections[section].score + 1e-12


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, power=st.integers(-3, 3), shift=st.integers(-4, 4))
def test_scale_and_shift_of_rewards_do_not_matter(
    name: str, seed: int, power: int, shift: int
) -> None:
    """By powers of two and small whole numbers, which change no comparison by rounding."""
    made, scored = BENCHMARKS[name], rewards_of(some_items(name), random.Random(seed))
    moved = [
        ScoredItem(item, [reward * 2.0**power + shift for reward in rewards])
        for item, rewards in scored
    ]
    assert made.compute_result(moved) == made.compute_result(scored)
