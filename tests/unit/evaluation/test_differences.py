"""Intervals of the difference of two runs, against scipy's bootstrap of paired samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from published_rows import (
    prm_row,
    process_row,
    read,
    rewardbench2_row,
    scored,
    solution_row,
    vote_row,
    whole,
)
from scipy import stats

from rm_core.benchmarks.base import Benchmark, Item, ScoredItem
from rm_core.benchmarks.processbench import compute_f1, find_first_error
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from serve.evaluation.compare import LoadedRun, compare
from serve.evaluation.statistics import Interval, compute_difference_intervals

RESAMPLES = 1_000
Runs = tuple[list[ScoredItem], list[ScoredItem]]


def noisy(seed: int, gain: float) -> Callable[[Item], list[float]]:
    """Rewards that favor better answers by `gain`; the noise of an item is that of its seed."""

    def compute(item: Item) -> list[float]:
        rng = random.Random(f"{seed} {item.key}")
        better = {pair.better for pair in item.preferences}
        return [gain * (i in better) + rng.gauss(0, 1) for i in range(len(item.responses))]

    return compute


def compute_intervals(benchmark: Benchmark, runs: Runs) -> dict[str, Interval]:
    run = LoadedRun("a", "a", benchmark, tuple(runs[0]))
    return compute_difference_intervals(
        benchmark, *runs, run.collect_metrics, resamples=RESAMPLES
    )  # fmt: skip


def bootstrap(items: int, compute_difference: Callable[[Any], float]) -> Interval:
    """scipy's interval of a difference that is computed from indices of items."""
    result = stats.bootstrap(
        (np.arange(items),),
        compute_difference,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(5),
    )
    return Interval(*result.confidence_interval)


def assert_close(ours: Interval, theirs: Interval) -> None:
    """Two bootstraps of 1,000 resamples differ by a tenth of the width at most."""
    width = theirs.high - theirs.low
    assert width > 0
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_difference_of_accuracy() -> None:
    benchmark = BENCHMARKS["ppe-preference"]
    items = read(benchmark, [(vote_row(n, "model_a"), "test.parquet") for n in range(300)])
    # The noise is the same in both runs, so that they are right on nearly the same items.
    runs = (scored(items, noisy(1, 1.0)), scored(items, noisy(1, 1.3)))
    right = np.array([[one.rewards[0] > one.rewards[1] for one in run] for run in runs], float)
    theirs = bootstrap(300, lambda i: right[1][i].mean() - right[0][i].mean())
    ours = compute_intervals(benchmark, runs)
    assert_close(ours["overall"], theirs)
    assert ours["votes"] == ours["overall"]
    assert ours.keys() == {"overall", "votes"}
    # Two samples that are not paired would give another interval.
    alone = stats.bootstrap(
        tuple(right), lambda a, b: b.mean() - a.mean(), n_resamples=RESAMPLES, vectorized=False,
        method="percentile", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert alone.high - alone.low > 2 * (ours["overall"].high - ours["overall"].low)


def test_difference_of_f1() -> None:
    benchmark = build_benchmark("processbench", threshold="0.5")
    rows = [(process_row(n, "gsm8k", n % 5 - 1), "gsm8k.json") for n in range(240)]
    items = read(benchmark, rows)

    def compute(seed: int, noise: float) -> Callable[[Item], list[float]]:
        def rewards(item: Item) -> list[float]:
            rng, label = random.Random(f"{seed} {item.id}"), item.metadata["label"]
            wrong = [label != -1 and index >= label for index in range(len(item.responses))]
            return [0.5 + (-0.3 if one else 0.3) + rng.gauss(0, noise) for one in wrong]

        return rewards

    runs = (scored(items, compute(1, 0.3)), scored(items, compute(2, 0.2)))
    labels = np.array([item.metadata["label"] for item in items])
    found = [np.array([find_first_error(one.rewards, 0.5) for one in run]) for run in runs]

    def compute_difference(indices: Any) -> float:
        drawn, is_correct = labels[indices], labels[indices] == -1
        f1 = []
        for run in found:
            right = run[indices] == drawn
            f1.append(compute_f1(right[~is_correct].mean(), right[is_correct].mean()))
        return float(f1[1] - f1[0])

    ours = compute_intervals(benchmark, runs)
    assert_close(ours["GSM8K"], bootstrap(240, compute_difference))
    assert {"GSM8K/error", "GSM8K/correct", "overall"} <= ours.keys()


def test_difference_of_reciprocal_rank_and_of_pairs() -> None:
    benchmark = BENCHMARKS["rewardmath"]
    rows = [
        (solution_row(2 * problem, place, right=place == 0), "direct.json")
        for problem in range(120)
        for place in range(10)
    ]
    items = read(benchmark, rows)
    runs = (scored(items, noisy(1, 1.0)), scored(items, noisy(2, 1.6)))
    ranks = [
        np.array([stats.rankdata([-r for r in one.rewards])[0] for one in run]) for run in runs
    ]
    ours = compute_intervals(benchmark, runs)
    for name, compute in (
        ("overall", lambda rank: (rank == 1).mean()),
        ("mrr", lambda rank: (1 / rank).mean()),
        ("pairs", lambda rank: ((10 - rank) / 9).mean()),
    ):
        theirs = bootstrap(120, lambda i, f=compute: f(ranks[1][i]) - f(ranks[0][i]))
        assert_close(ours[name], theirs)


def test_difference_of_prm_score() -> None:
    benchmark = BENCHMARKS["prmbench"]
    items = read(benchmark, [(prm_row(n, "circular", [2 + n % 3]), "x.jsonl") for n in range(150)])

    def compute(seed: int, gain: float) -> Callable[[Item], list[float]]:
        def rewards(item: Item) -> list[float]:
            rng, errors = random.Random(f"{seed} {item.id}"), item.metadata["errors"]
            return [0.5 + rng.gauss(0, 0.3) + gain * (i not in errors) for i in range(4)]

        return rewards

    runs = (scored(items, compute(1, 0.2)), scored(items, compute(2, 0.5)))
    is_right = np.array([[i not in item.metadata["errors"] for i in range(4)] for item in items])
    predicted = [np.array([[r > 0.5 for r in one.rewards] for one in run]) for run in runs]

    def compute_score(truth: Any, guess: Any) -> float:
        both = ((truth, guess), (~truth, ~guess))
        return float(sum(2 * (t & g).sum() / (t.sum() + g.sum()) for t, g in both) / 2)

    theirs = bootstrap(
        150,
        lambda i: (
            compute_score(is_right[i], predicted[1][i])
            - compute_score(is_right[i], predicted[0][i])
        ),
    )
    ours = compute_intervals(benchmark, runs)
    assert_close(ours["overall"], theirs)
    assert {"circular", "f1", "negative_f1", "Simplicity"} <= ours.keys()


def test_subsets_are_resampled_separately_and_clusters_together() -> None:
    benchmark = BENCHMARKS["rewardbench2"]
    rows = [(rewardbench2_row(f"m-{n}", "Math"), "x") for n in range(40)]
    for n in range(25):
        rows += [(rewardbench2_row(f"ref:{n}", "Ties", 1, 4), "x")]
        rows += [(rewardbench2_row(f"tied:{n}", "Ties", 3, 4), "x")]
    items = read(benchmark, rows)
    # Math is equal in both runs.
    first = scored(items, noisy(1, 1.0))
    second = [
        one if one.item.subset == "Math" else ScoredItem(one.item, noisy(2, 3.0)(one.item))
        for one in first
    ]
    intervals = compute_intervals(benchmark, (first, second))
    assert intervals.keys() == {"overall", "Ties"}
    assert intervals["Ties"].low > 0


@pytest.mark.parametrize(
    ("name", "extra"),
    [("rm-bench", {"easy", "normal", "hard"}), ("judgebench", {"mean_of_sections"})],
)
def test_metrics_beyond_sections_have_intervals(name: str, extra: set[str]) -> None:
    benchmark = BENCHMARKS[name]
    items = read(benchmark, whole(name)[::4])
    runs = (scored(items, noisy(1, 0.5)), scored(items, noisy(2, 1.5)))
    intervals = compute_difference_intervals(
        benchmark, *runs, LoadedRun("a", "a", benchmark, ()).collect_metrics, resamples=20
    )
    sections = benchmark.compute_result(runs[0]).sections
    assert intervals.keys() == {"overall", *extra, *sections}


def test_intervals_do_not_depend_on_the_order_of_items() -> None:
    benchmark = BENCHMARKS["rewardbench"]
    items = read(benchmark, whole("rewardbench")[::20])
    runs = (scored(items, noisy(1, 1.0)), scored(items, noisy(2, 1.0)))
    intervals = compute_intervals(benchmark, runs)
    shuffled: list[list[ScoredItem]] = []
    for seed, run in enumerate(runs):
        shuffled.append(random.Random(seed).sample(run, len(run)))
    assert compute_intervals(benchmark, (shuffled[0], shuffled[1])) == intervals


def test_single_item_has_no_interval() -> None:
    benchmark = BENCHMARKS["ppe-preference"]
    items = read(benchmark, [(vote_row(0, "model_a"), "x")])
    runs = (scored(items, lambda _: [1.0, 0.0]), scored(items, lambda _: [0.0, 1.0]))
    assert compute_intervals(benchmark, runs) == {}


def load_judge(name: str, items: Sequence[Item], log_odds: Any) -> LoadedRun:
    scores = [
        ScoredItem(item, log_odds=[[float(value) for value in orders]])
        for item, orders in zip(items, log_odds, strict=True)
    ]
    return LoadedRun(name, name, BENCHMARKS["judgebench"], tuple(scores))


def test_margins_of_judges_are_correlated() -> None:
    items = read(BENCHMARKS["judgebench"], whole("judgebench")[:60])
    rng = np.random.default_rng(3)
    both = rng.normal(size=(60, 2))
    first = load_judge("a", items, both)
    second = load_judge("b", items, 0.5 * both + rng.normal(size=(60, 2)))
    comparison = compare(first, second)
    signs = [1 if item.preferences[0].better == 0 else -1 for item in items]
    margins = [
        [sign * np.mean(one.log_odds[0]) for one, sign in zip(run.scored_items, signs, strict=True)]
        for run in (first, second)
    ]
    expected = (stats.pearsonr(*margins).statistic, stats.spearmanr(*margins).statistic)
    assert comparison.correlations.keys() == {"margins"}
    assert comparison.correlations["margins"] == pytest.approx(expected)
    assert 0.1 < expected[0] < 0.9
    as_json = comparison.to_dict()
    assert as_json["margins"] == pytest.approx(
        {"pearson": expected[0], "spearman": expected[1]}, abs=1e-12
    )
    assert as_json["pearson"] is None


def test_judge_is_compared_with_classifier_by_margins() -> None:
    items = read(BENCHMARKS["judgebench"], whole("judgebench")[:30])
    classifier = LoadedRun(
        "c", "c", BENCHMARKS["judgebench"], tuple(scored(items, noisy(1, 1.0)))
    )  # fmt: skip
    differences = [one.rewards[0] - one.rewards[1] for one in classifier.scored_items]
    judge = load_judge("j", items, [(2 * value, 2 * value) for value in differences])
    comparison = compare(judge, classifier)
    assert comparison.correlations == {"margins": pytest.approx((1, 1))}
    assert comparison.agreement == 1


def test_rewards_of_steps_are_correlated_where_both_have_one() -> None:
    """Step formats with a maximum length give fewer rewards than an item has steps."""
    benchmark = build_benchmark("prmbench", preparation="prmbench")
    items = read(benchmark, [(prm_row(n, "circular", [2]), "x.jsonl") for n in range(20)])
    complete = scored(items, lambda item: [float(len(item.id) + i) for i in range(5)])
    shorter = [one._replace(rewards=list(one.rewards)[:3]) for one in complete]
    comparison = compare(
        LoadedRun("a", "a", benchmark, tuple(complete)),
        LoadedRun("b", "b", benchmark, tuple(shorter)),
    )
    assert comparison.correlations == {"rewards": pytest.approx((1, 1))}
