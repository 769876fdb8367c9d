"""Properties of every benchmark for any rewards: order, bounds, ties, scale and shift."""

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
# The others have no pairs of a better and a worse response.
PAIRWISE = [name for name in NAMES if name not in ("processbench", "prmbench", "best-of-n")]
# Few values, so that ties are common.
VALUES = (-1.5, 0.0, 0.25, 1.0)


@functools.cache
def sample_items(name: str) -> tuple[Item, ...]:
    """Return items of every subset, and both rows of some numbers of Ties."""
    rows: list[Item] = []
    counts: dict[str, int] = {}
    for item in read(BENCHMARKS[name], whole(name)):
        counts[item.subset] = counts.get(item.subset, 0) + 1
        if counts[item.subset] <= 4:
            rows.append(item)
    return tuple(rows)


def draw_rewards(items: Sequence[Item], rng: random.Random) -> list[ScoredItem]:
    return [ScoredItem(item, [rng.choice(VALUES) for _ in item.responses]) for item in items]


def all_scores(result: BenchmarkResult) -> Iterator[float]:
    groups: list[Mapping[str, SubsetScore]] = [result.sections, result.subsets]
    for group in groups:
        yield from (score.score for score in group.values())
    if result.overall is not None:
        yield result.overall


SEEDS = st.integers(0, 2**32)


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_result_does_not_depend_on_item_order(name: str, seed: int) -> None:
    rng = random.Random(seed)
    benchmark, scored = BENCHMARKS[name], draw_rewards(sample_items(name), rng)
    expected = benchmark.compute_result(scored)
    rng.shuffle(scored)
    assert benchmark.compute_result(scored) == expected


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_scores_are_bounded(name: str, seed: int) -> None:
    rng = random.Random(seed)
    scored = draw_rewards(sample_items(name), rng)
    some = rng.sample(scored, rng.randint(0, len(scored)))
    result = BENCHMARKS[name].compute_result(some)
    for score in all_scores(result):
        assert -0.01 <= score <= 1.01
    for subset in [*result.sections.values(), *result.subsets.values()]:
        assert 0 < subset.num_items <= len(some)
        if subset.num_correct is not None:
            assert 0 <= subset.num_correct <= subset.num_items


@pytest.mark.parametrize("name", PAIRWISE)
def test_best_and_worst_rewards_give_extreme_scores(name: str) -> None:
    benchmark, items = BENCHMARKS[name], sample_items(name)

    def by_rank(item: Item, sign: float) -> list[float]:
        better = {pair.better for pair in item.preferences}
        return [sign * (index in better) for index in range(len(item.responses))]

    best = benchmark.compute_result([ScoredItem(item, by_rank(item, 1.0)) for item in items])
    worst = benchmark.compute_result([ScoredItem(item, by_rank(item, -1.0)) for item in items])
    assert best.overall == pytest.approx(1.01 if name == "rewardbench2" else 1.0, abs=0.02)
    assert min(all_scores(best)) >= 1.0
    assert worst.overall is not None
    assert worst.overall <= 0.0
    assert max(all_scores(worst)) <= 0.0


@pytest.mark.parametrize("name", PAIRWISE)
@given(seed=SEEDS)
def test_ties_never_help(name: str, seed: int) -> None:
    """Lowering a worse answer from a tie never lowers a score; in both orders for JudgeBench."""
    benchmark = build_benchmark(name, orders="both") if name == "judgebench" else BENCHMARKS[name]
    scored = draw_rewards(sample_items(name), random.Random(seed))
    broken = []
    for item, rewards, *_ in scored:
        better = {pair.better for pair in item.preferences}
        # Lower every answer that is not better than another a little: this changes only ties.
        changed = [
            reward if index in better else reward - 1e-6 for index, reward in enumerate(rewards)
        ]
        broken.append(ScoredItem(item, changed))
    before, after = benchmark.compute_result(scored), benchmark.compute_result(broken)
    for name, section in before.sections.items():
        assert section.score <= after.sections[name].score + 1e-12


@pytest.mark.parametrize("name", PAIRWISE)
@given(seed=SEEDS, power=st.integers(-3, 3), shift=st.integers(-4, 4))
def test_scale_and_shift_of_rewards_do_not_matter(
    name: str, seed: int, power: int, shift: int
) -> None:
    """By powers of two and small whole numbers, which change no comparison by rounding."""
    benchmark, scored = BENCHMARKS[name], draw_rewards(sample_items(name), random.Random(seed))
    moved = [
        ScoredItem(item, [reward * 2.0**power + shift for reward in rewards])
        for item, rewards, *_ in scored
    ]
    assert benchmark.compute_result(moved) == benchmark.compute_result(scored)
