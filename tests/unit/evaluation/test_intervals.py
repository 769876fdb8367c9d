"""Intervals of results: shares and other scores, clusters, independence of the order of items."""

from __future__ import annotations

import random

import pytest
from published_rows import read, rewardbench2_row, rm_bench_row, scored, whole

from rm_core.benchmarks.base import Item, ScoredItem, SubsetScore
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.statistics import Intervals, compute_intervals, is_proportion, wilson


def noisy_rewards(item: Item, gain: float = 1.0) -> list[float]:
    """Rewards that are right more often than not."""
    rng = random.Random(f"{item.subset} {item.id}")
    better = {pair.better for pair in item.preferences}
    return [gain * (index in better) + rng.gauss(0, 1) for index in range(len(item.responses))]


@pytest.mark.parametrize("name", ["rewardbench", "rewardbench2", "rm-bench", "judgebench"])
def test_scores_lie_in_their_intervals(name: str) -> None:
    benchmark = BENCHMARKS[name]
    items = scored(read(benchmark, whole(name)), noisy_rewards)
    result = benchmark.compute_result(items)
    intervals = compute_intervals(benchmark, items, result, resamples=50)
    assert intervals.overall is not None
    assert result.overall is not None
    assert intervals.overall.low < result.overall < intervals.overall.high
    assert intervals.overall.high - intervals.overall.low < 0.15
    assert intervals.sections.keys() == result.sections.keys()
    assert intervals.subsets.keys() == result.subsets.keys()
    for score, interval in ((result.sections[n], intervals.sections[n]) for n in result.sections):
        assert interval.low <= score.score <= interval.high
        if is_proportion(score):
            assert interval == wilson(score.num_correct or 0.0, score.num_items)
    random.Random(1).shuffle(items)
    assert compute_intervals(benchmark, items, result, resamples=50) == intervals


def test_weighted_section_is_not_a_proportion() -> None:
    benchmark = BENCHMARKS["rewardbench"]
    items = scored(read(benchmark, whole("rewardbench")), noisy_rewards)
    result = benchmark.compute_result(items)
    assert is_proportion(result.sections["Chat"])
    assert not is_proportion(result.sections["Reasoning"])
    reasoning = compute_intervals(benchmark, items, result).sections["Reasoning"]
    # Half of the weight is on the 447 rows of math-prm: the interval is narrower than that of these
    # rows and wider than that of 1,431 rows.
    plain = wilson(result.sections["Reasoning"].score * 1431, 1431)
    assert plain.high - plain.low < reasoning.high - reasoning.low
    math = wilson(result.subsets["math-prm"].num_correct or 0.0, 447)
    assert reasoning.high - reasoning.low < math.high - math.low


def test_comparisons_of_one_item_are_resampled_together() -> None:
    benchmark = BENCHMARKS["rm-bench"]
    items = [benchmark.read(rm_bench_row(n), "chat.json") for n in range(60)]
    # All nine comparisons of an item are right, or none: an interval as of 60 items, not of 540.
    pairs = [ScoredItem(item, [float(n % 2)] * 3 + [0.5] * 3) for n, item in enumerate(items)]
    chat = compute_intervals(benchmark, pairs, benchmark.compute_result(pairs)).sections["chat"]
    expected = wilson(30, 60)
    assert chat.high - chat.low == pytest.approx(expected.high - expected.low, abs=0.03)


def test_rows_of_a_ties_number_are_resampled_together() -> None:
    benchmark = BENCHMARKS["rewardbench2"]
    items = []
    for number in range(20):
        gap = 3.0 if number % 2 else -1.0
        ref = benchmark.read(rewardbench2_row(f"ref:{number}", "Ties", 1, 1), "")
        tied = benchmark.read(rewardbench2_row(f"tied:{number}", "Ties", 2, 1), "")
        items += [ScoredItem(ref, [gap, 0.0]), ScoredItem(tied, [gap + 1, gap, 0.0])]
    result = benchmark.compute_result(items)
    intervals = compute_intervals(benchmark, items, result)
    # An interval as of 20 numbers, half of which are right.
    assert intervals.overall == intervals.subsets["Ties"]
    low, high = intervals.subsets["Ties"]
    assert low < result.subsets["Ties"].score < high
    assert high - low == pytest.approx(wilson(10, 20).high - wilson(10, 20).low, abs=0.07)


def test_empty_result_has_no_intervals() -> None:
    benchmark = BENCHMARKS["rmb"]
    intervals = compute_intervals(benchmark, [], benchmark.compute_result([]))
    assert (intervals.overall, intervals.sections, intervals.subsets) == (None, {}, {})


def rewardbench_items(**rights: str) -> list[ScoredItem]:
    """Items of each subset, whose name has `_` for `-`: 1 is right, 0 is wrong."""
    benchmark, items = BENCHMARKS["rewardbench"], []
    for name, flags in rights.items():
        for number, flag in enumerate(flags):
            row = {"id": number, "subset": name.replace("_", "-"), "prompt": "p"}
            item = benchmark.read(row | {"chosen": "c", "rejected": "r"}, "x")
            items.append(ScoredItem(item, [float(flag), 0.5]))
    return items


def test_scores_of_a_subset_with_one_item_have_no_bootstrap_interval() -> None:
    benchmark = BENCHMARKS["rewardbench"]
    items = rewardbench_items(alpacaeval_easy="1", math_prm="0101", hep_cpp="0", hep_go="0011")
    result = benchmark.compute_result(items)
    intervals = compute_intervals(benchmark, items, result)
    assert intervals.overall is None
    # Half of Reasoning's weight varies, so its interval would be too narrow.
    assert intervals.sections == {"Chat": wilson(1, 1)}
    assert intervals.subsets["hep-go"] == wilson(2, 4)
    # With a second item, all scores have intervals.
    items = rewardbench_items(alpacaeval_easy="10", math_prm="0101", hep_cpp="00", hep_go="0011")
    intervals = compute_intervals(benchmark, items, benchmark.compute_result(items))
    assert intervals.overall is not None
    assert intervals.sections.keys() == {"Chat", "Reasoning"}


def test_one_cluster_alone_has_no_interval() -> None:
    benchmark = BENCHMARKS["rewardbench2"]
    ref = benchmark.read(rewardbench2_row("ref:0", "Ties", 1, 1), "")
    tied = benchmark.read(rewardbench2_row("tied:0", "Ties", 2, 1), "")
    items = [ScoredItem(ref, [3.0, 0.0]), ScoredItem(tied, [3.0, 2.0, 0.0])]
    result = benchmark.compute_result(items)
    assert result.overall is not None
    assert compute_intervals(benchmark, items, result) == Intervals(None, {}, {})


def test_equal_items_have_no_bootstrap_interval() -> None:
    benchmark = BENCHMARKS["rewardbench"]
    items = rewardbench_items(alpacaeval_easy="11", math_prm="000")
    intervals = compute_intervals(benchmark, items, benchmark.compute_result(items))
    assert intervals.overall is None
    assert intervals.subsets == {"alpacaeval-easy": wilson(2, 2), "math-prm": wilson(0, 3)}


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (SubsetScore(0.5, 4, None, 2.0), True),
        (SubsetScore(0.5, 4, None, None), False),
        (SubsetScore(0.375, 4, None, 1.5), False),
        (SubsetScore(0.6, 4, None, 2.0), False),
    ],
)
def test_is_proportion_requires_whole_correct_items(score: SubsetScore, expected: bool) -> None:
    assert is_proportion(score) == expected
