"""Judges on pairs: margins of both orders, and how each benchmark counts verdicts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from published_rows import (
    judgebench_row,
    read,
    rewardbench_row,
    rm_bench_row,
    rmb_group,
    vote_row,
    whole,
)

from rm_core.benchmarks.base import Item, Preference, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench import draw_order

JUDGED = [name for name, one in BENCHMARKS.items() if "judge" in one.kinds]


def test_benchmarks_that_are_run_with_judges() -> None:
    assert JUDGED == ["rewardbench", "rm-bench", "rmb", "judgebench", "ppe-preference"]


def test_margin_is_mean_log_odds_of_the_better_response() -> None:
    item = Item("1", "x", [], ("a", "b", "c"), (Preference(2, 0), Preference(0, 1)))
    assert item.pairs == ((0, 1), (0, 2))
    scored = ScoredItem(item, log_odds=[[2.0, 1.0], [0.5]])
    assert scored.get_margin(Preference(0, 1)) == 1.5
    assert scored.get_margin(Preference(1, 0)) == -1.5
    assert scored.get_margin(Preference(2, 0)) == -0.5


@pytest.mark.parametrize("name", JUDGED)
def test_judge_that_agrees_with_rewards_has_their_results(name: str) -> None:
    """Without ties, differences of rewards as log-odds in both orders are the same verdicts."""
    benchmark, rng = BENCHMARKS[name], random.Random(1)
    items = read(benchmark, whole(name)[::9])
    by_reward, by_judge = [], []
    for item in items:
        rewards = [rng.gauss(0, 1) for _ in item.responses]
        log_odds = [[rewards[first] - rewards[second]] * 2 for first, second in item.pairs]
        by_reward.append(ScoredItem(item, rewards))
        by_judge.append(ScoredItem(item, log_odds=log_odds))
    assert benchmark.compute_result(by_judge) == benchmark.compute_result(by_reward)


def grade(name: str, row: tuple[dict[str, object], str], log_odds: object, **options: str) -> float:
    benchmark = build_benchmark(name, **options)
    (item,) = read(benchmark, [row])
    scored: Sequence[Sequence[float]] = log_odds  # type: ignore[assignment]
    return benchmark.grade_item(ScoredItem(item, log_odds=scored)).right  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("orders", "is_right_for_a"),
    [
        ((3.0, 0.1), True),
        ((3.0, -0.1), False),  # one verdict each way: a draw, which is wrong
        ((3.0, 0.0), True),  # one undecided
        ((0.0, 0.0), False),
        ((-3.0, -0.1), False),
        ((0.5,), True),
    ],
)
def test_judgebench_adds_verdicts_of_both_orders(
    orders: tuple[float, ...], is_right_for_a: bool
) -> None:
    row = judgebench_row(1, "mmlu-pro-law", "A>B"), "gpt.jsonl"
    assert grade("judgebench", row, [orders]) == is_right_for_a
    row = judgebench_row(1, "mmlu-pro-law", "B>A"), "gpt.jsonl"
    assert grade("judgebench", row, [[-value for value in orders]]) == is_right_for_a


def test_rewardbench_counts_one_order_by_seed_and_a_tie_as_half() -> None:
    orders = {}
    for number in range(40):
        row = rewardbench_row(number, "hep-go"), "x.jsonl"
        right = grade("rewardbench", row, [[1.0, -1.0]])
        orders[number] = int(not right)
        assert orders[number] == draw_order((str(number), "hep-go"))
        assert grade("rewardbench", row, [[1.0, -1.0]], judge_orders="both") == 0.5
        assert grade("rewardbench", row, [[1.0, -0.5]], judge_orders="both") == 1.0
        assert grade("rewardbench", row, [[0.0]]) == 0.5
        assert grade("rewardbench", row, [[-2.0]]) == 0.0
    assert 10 < sum(orders.values()) < 30


def test_rm_bench_rmb_and_ppe_average_both_orders() -> None:
    row = rm_bench_row(1), "chat_filtered.json"
    assert grade("rm-bench", row, [[2.0, -1.0]] * 9) == 9
    assert grade("rm-bench", row, [[2.0, -1.0]] * 8 + [[1.0, -1.0]]) == 8
    row = rmb_group(1, "BoN_set/Helpfulness/Chat", 2), ""
    assert grade("rmb", row, [[2.0, -1.0], [0.5, 0.5]]) == 1
    assert grade("rmb", row, [[2.0, -1.0], [0.5, -0.5]]) == 0
    assert grade("ppe-preference", (vote_row(1, "model_b"), ""), [[-2.0, 1.0]]) == 1
