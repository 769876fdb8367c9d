"""Intervals of figures: of shares and other scores, of clusters, and of any order of items."""

from __future__ import annotations

import random

import pytest
from published_rows import read, rewardbench2_row, rm_bench_row, scored, whole

from rm_core.benchmarks.base import Item, ScoredItem, SubsetScore
from rm_core.benchmarks.intervals import compute_intervals, is_proportion
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.statistics import wilson


def noisy(item: Item, gain: float = 1.0) -> list[float]:
    """Rewards that are right more often than not."""
    chance = random.Random(f"{item.subset} {item.id}")
    better = {pair.better for pair in item.preferences}
    return [gain * (place in better) + chance.gauss(0, 1) for place in range(len(item.responses))]


@pytest.mark.parametrize("name", ["rewardbench", "rewardbench2", "rm-bench", "judgebench"])
def test_figures_lie_in_their_intervals(name: str) -> None:
    made = BENCHMARKS[name]
    items = scored(read(made, whole(name)), noisy)
    figures = made.compute_result(items)
    found = compute_intervals(made, items, figures, resamples=50)
    assert found.overall is not None
    assert figures.overall is not None
    assert found.overall.low < figures.overall < found.overall.high
    assert found.overall.high - found.overall.low < 0.15
    assert found.sections.keys() == figures.sections.keys()
    assert found.subsets.keys() == figures.subsets.keys()
    for part, interval in ((figures.sections[n], found.sections[n]) for n in figures.sections):
        assert interval.low <= part.score <= interval.high
        if is_proportion(part):
            assert interval == wilson(part.num_correct or 0.0, part.num_items)
    random.Random(1).shuffle(items)
    assert compute_intervals(made, items, figures, resamples=50) == found


def test_a_weighted_section_is_no_share() -> None:
    made = BENCHMARKS["rewardbench"]
    items = scored(read(made, whole("rewardbench")), noisy)
    figures = made.compute_result(items)
    assert is_proportion(figures.sections["Chat"])
    assert not is_proportion(figures.sections["Reasoning"])
    reasoning = compute_intervals(made, items, figures).sections["Reasoning"]
    # Half of the weight is on the 447 rows of math-prm: surer than those, less than 1,431 rows.
    plain = wilson(figures.sections["Reasoning"].score * 1431, 1431)
    assert plain.high - plain.low < reasoning.high - reasoning.low
    math = wilson(figures.subsets["math-prm"].num_correct or 0.0, 447)
    assert reasoning.high - reasoning.low < math.high - math.low


def test_cells_of_one_item_are_not_drawn_apart() -> None:
    made = BENCHMARKS["rm-bench"]
    items = [made.read(rm_bench_row(n), "chat.json") for n in range(60)]
    # All nine comparisons of an item are right, or none: as sure as 60 items, not 540.
    pairs = [ScoredItem(item, [float(n % 2)] * 3 + [0.5] * 3) for n, item in enumerate(items)]
    found = compute_intervals(made, pairs, made.compute_result(pairs)).sections["chat"]
    alike = wilson(30, 60)
    assert found.high - found.low == pytest.approx(alike.high - alike.low, abs=0.03)


def test_a_number_of_ties_is_drawn_as_a_whole() -> None:
    made = BENCHMARKS["rewardbench2"]
    items = []
    for number in range(20):
        gap = 3.0 if number % 2 else -1.0
        ref = made.read(rewardbench2_row(f"ref:{number}", "Ties", 1, 1), "")
        tied = made.read(rewardbench2_row(f"tied:{number}", "Ties", 2, 1), "")
        items += [ScoredItem(ref, [gap, 0.0]), ScoredItem(tied, [gap + 1, gap, 0.0])]
    figures = made.compute_result(items)
    found = compute_intervals(made, items, figures)
    # As sure as 20 numbers, half of which are right.
    assert found.overall == found.subsets["Ties"]
    low, high = found.subsets["Ties"]
    assert low < figures.subsets["Ties"].score < high
    assert high - low == pytest.approx(wilson(10, 20).high - wilson(10, 20).low, abs=0.07)


def test_nothing_has_no_interval() -> None:
    made = BENCHMARKS["rmb"]
    found = compute_intervals(made, [], made.compute_result([]))
    assert (found.overall, found.sections, found.subsets) == (None, {}, {})


@pytest.mark.parametrize(
    ("part", "is_one"),
    [
        (SubsetScore(0.5, 4, None, 2.0), True),
        (SubsetScore(0.5, 4, None, None), False),
        (SubsetScore(0.375, 4, None, 1.5), False),
        (SubsetScore(0.6, 4, None, 2.0), False),
    ],
)
def test_what_is_a_share(part: SubsetScore, is_one: bool) -> None:
    assert is_proportion(part) == is_one
