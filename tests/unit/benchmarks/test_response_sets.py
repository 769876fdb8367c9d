"""Best of n on own prompts: curves by aggregation, pass@n, the majority, and rows."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from published_rows import read, response_set_row, rmb_group

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.best_of_n import compute_majority
from rm_core.benchmarks.registry import build_benchmark
from rm_core.benchmarks.response_sets import BestOfN
from rm_core.errors import BenchmarkDataError
from rm_core.results import AGGREGATIONS

STEP_REWARDS = [[0.9, 0.8], [0.2, 0.95], [0.8, 0.7, 0.9]]
"""The best response is the second by last, the first by product, the first by min and mean."""


def test_each_aggregation_selects_by_its_own_rewards() -> None:
    items = read(BestOfN(), [(response_set_row(0, [True, False, False]), "x.jsonl")])
    scored = [ScoredItem(items[0], [0.8, 0.95, 0.9], step_rewards=STEP_REWARDS)]
    result = BestOfN().compute_result(scored)
    assert result.extra["accuracy"] == {"last": 0.0, "min": 1.0, "mean": 1.0, "product": 1.0}
    assert result.overall == 0.0
    for aggregation, expected in result.extra["accuracy"].items():
        benchmark = build_benchmark("best-of-n", aggregation=aggregation)
        assert benchmark.compute_result(scored).overall == expected


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_curves_equal_enumeration_of_draws(aggregation: str) -> None:
    rng = random.Random(3)
    rows = [(response_set_row(n, [rng.random() < 0.4 for _ in range(6)]), "") for n in range(5)]
    scored = []
    for item in read(BestOfN(), rows):
        steps = [[rng.random() for _ in range(rng.randint(1, 4))] for _ in range(6)]
        scored.append(ScoredItem(item, [one[-1] for one in steps], step_rewards=steps))
    curve = BestOfN().compute_result(scored).extra["best_of_n"]["overall"]
    assert curve["n"] == [1, 2, 3, 4, 5, 6]
    combine = {
        "last": lambda steps: steps[-1],
        "min": min,
        "mean": lambda steps: sum(steps) / len(steps),
        "product": lambda steps: math.prod(steps),
    }[aggregation]
    for n in curve["n"]:
        chosen, passed = [], []
        for one in scored:
            draws = list(itertools.combinations(range(6), n))
            best = [max(draw, key=lambda i: combine(one.step_rewards[i])) for draw in draws]
            truth = one.item.metadata["truth"]
            chosen.append(sum(truth[i] for i in best) / len(draws))
            passed.append(sum(max(truth[i] for i in draw) for draw in draws) / len(draws))
        assert curve[aggregation][n - 1] == pytest.approx(sum(chosen) / 5, abs=1e-12)
        assert curve["best"][n - 1] == pytest.approx(sum(passed) / 5, abs=1e-12)


def test_majority_is_an_unbiased_estimate() -> None:
    answers = ["7", "7", "8", "8", "8", None, "9"]
    truth = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    estimates = compute_majority(answers, truth, [1, 2, 3, 5, 7])
    for n, estimate in zip([1, 2, 3, 5, 7], estimates, strict=True):
        values = []
        for draw in itertools.combinations(range(7), n):
            counts = Counter(answers[i] for i in draw if answers[i] is not None)
            top = max(counts.values(), default=0)
            leaders = [answer for answer, count in counts.items() if count == top]
            values.append(sum(answer == "7" for answer in leaders) / max(1, len(leaders)))
        # 200 draws: a standard error of at most 0.036.
        assert estimate == pytest.approx(sum(values) / len(values), abs=0.11)
    assert estimates[-1] == 0.0
    assert compute_majority([None, None], [1.0, 1.0], [1, 2]) == [0.0, 0.0]


def test_rewards_of_classifier_have_one_curve() -> None:
    rows = [
        (response_set_row(n, [n == 0, True], ["a", "b"]) | {"subset": f"s{n}"}, "") for n in (0, 1)
    ]
    scored = [ScoredItem(item, [1.0, 0.0]) for item in read(BestOfN(), rows)]
    result = BestOfN().compute_result(scored)
    assert (result.overall, result.missing) == (0.5, ())
    assert {name: section.score for name, section in result.sections.items()} == {
        "s0": 1.0,
        "s1": 0.0,
    }
    curves = result.extra["best_of_n"]
    assert list(curves) == ["overall", "s0", "s1"]
    assert list(curves["s1"]) == ["n", "reward", "majority", "best", "worst"]
    assert curves["overall"]["reward"] == [0.75, 0.5]
    assert curves["overall"]["best"] == [0.75, 1.0]


def test_groups_of_rmb_are_read() -> None:
    path = "BoN_set/Helpfulness/Chat"
    item = BestOfN().read(rmb_group(1, path, 3), "")
    assert (item.subset, item.metadata["truth"]) == (path, (1.0, 0.0, 0.0, 0.0))
    assert item.preferences == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": [True]}, "`correct` has 1 items for 2 responses"),
        ({"answers": ["a"]}, "`answers` has 1 items for 2 responses"),
        ({"correct": ["yes", "no"]}, "`correct` is 'yes'; it must be a finite number"),
        ({"responses": []}, "`responses` is an empty list"),
        ({"prompt": None}, "`prompt` is null"),
    ],
)
def test_invalid_row_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        BestOfN().read(response_set_row(3, [True, False]) | change, "rows.jsonl")
