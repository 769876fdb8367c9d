"""ProcessBench: published accuracies from exact counts, thresholds, and independent arithmetic."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from conftest import BENCHMARK_DATA
from hypothesis import given
from hypothesis import strategies as st
from published_rows import process_row, read, whole

from rm_core.benchmarks.base import BenchmarkResult, Item, ScoredItem, StepItem
from rm_core.benchmarks.processbench import (
    COUNTS,
    TITLES,
    ProcessBench,
    choose_threshold,
    find_first_error,
    find_threshold_range,
)
from rm_core.benchmarks.registry import build_benchmark
from rm_core.errors import BenchmarkDataError

GSM8K = BENCHMARK_DATA / "processbench" / "gsm8k.json"
# Solutions with and without a wrong step that were judged rightly, by subset; then the published
# accuracies of both and F1.
PUBLISHED = {
    "1.5B": [
        (104, 138, 50.2, 71.5, 59.0),
        (225, 265, 37.9, 65.3, 48.0),
        (102, 88, 15.4, 26.0, 19.3),
        (103, 79, 13.6, 32.8, 19.2),
    ],
    "7B": [
        (128, 160, 61.8, 82.9, 70.8),
        (260, 281, 43.8, 69.2, 53.6),
        (118, 108, 17.9, 31.9, 22.9),
        (106, 101, 14.0, 41.9, 21.0),
    ],
}
MEANS = {"1.5B": 36.4, "7B": 42.1}


def judge(item: Item, is_right: bool) -> list[float]:
    """Rewards that a threshold of 0.5 judges as labeled, or not."""
    label = item.metadata["label"] if is_right else (-1 if item.metadata["label"] >= 0 else 0)
    return [0.1 if index == label else 0.9 for index in range(len(item.responses))]


def score_with_counts(items: Sequence[Item], counts: Mapping[str, int]) -> list[ScoredItem]:
    left = dict(counts)
    scored = []
    for item in items:
        half = "correct" if item.metadata["label"] == -1 else "error"
        name = f"{TITLES[item.subset]}/{half}"
        left[name] -= 1
        scored.append(ScoredItem(item, judge(item, left[name] >= 0)))
    return scored


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("threshold", ["gsm8k", "0.5"])
def test_counts_give_published_accuracies(model: str, threshold: str) -> None:
    benchmark = build_benchmark("processbench", threshold=threshold)
    rows = dict(zip(TITLES.values(), PUBLISHED[model], strict=True))
    counts = {f"{title}/error": row[0] for title, row in rows.items()}
    counts |= {f"{title}/correct": row[1] for title, row in rows.items()}
    items = read(benchmark, whole("processbench"))
    result = benchmark.compute_result(score_with_counts(items, counts))
    assert result.missing == ()
    assert list(result.subsets) == list(COUNTS)
    for title, (errors, corrects, error, correct, f1) in rows.items():
        for half, count, accuracy in (("error", errors, error), ("correct", corrects, correct)):
            subset = result.subsets[f"{title}/{half}"]
            assert subset.num_correct == count
            assert (subset.num_items, subset.num_expected) == (COUNTS[f"{title}/{half}"],) * 2
            assert round(100 * subset.score, 1) == accuracy
        # The paper's F1 are computed from rounded accuracies.
        assert 100 * result.sections[title].score == pytest.approx(f1, abs=0.1)
    assert result.overall is not None
    assert 100 * result.overall == pytest.approx(MEANS[model], abs=0.1)
    assert set(result.extra["thresholds"].values()) == {0.5}


@pytest.mark.skipif(not GSM8K.is_file(), reason="ProcessBench's GSM8K is missing")
@pytest.mark.parametrize("seed", range(3))
def test_random_rewards_of_gsm8k_match_numpy(seed: int) -> None:
    """The best F1 over a search of all thresholds, with arrays padded to the longest solution."""
    benchmark = ProcessBench()
    items = [benchmark.read(row, "gsm8k.json") for row in json.loads(GSM8K.read_text())]
    rng = np.random.default_rng(seed)
    labels = np.array([item.metadata["label"] for item in items])
    rewards = np.ones((len(items), max(len(item.responses) for item in items)))
    for i, item in enumerate(items):
        rewards[i, : len(item.responses)] = rng.random(len(item.responses)) ** 0.5
        if labels[i] >= 0:
            rewards[i, labels[i]] *= 0.6
    rewards = rewards.round(3)
    best = {}
    for threshold in np.unique(rewards):
        wrong = rewards <= threshold
        wrong[rewards == 1.0] &= threshold >= 1.0
        predicted = np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1)
        error = np.mean((predicted == labels)[labels >= 0])
        correct = np.mean((predicted == labels)[labels == -1])
        if error + correct:
            best[float(threshold)] = (2 * error * correct / (error + correct), error, correct)
    low = max(best, key=lambda threshold: best[threshold][0])
    scored = [
        ScoredItem(item, [float(x) for x in row[: len(item.responses)]])
        for item, row in zip(items, rewards, strict=True)
    ]
    result = benchmark.compute_result(scored)
    assert result.sections["GSM8K"].score == pytest.approx(best[low][0], abs=1e-12)
    assert result.subsets["GSM8K/error"].score == pytest.approx(best[low][1], abs=1e-12)
    assert result.subsets["GSM8K/correct"].score == pytest.approx(best[low][2], abs=1e-12)
    assert result.subsets["GSM8K/error"].num_items == 207
    threshold = result.extra["thresholds"]["GSM8K"]
    assert low <= threshold < low + 0.05
    assert "subset MATH/error: has none of 594 items" in result.missing


REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=5)


@given(REWARDS, st.data())
def test_range_has_exactly_the_thresholds_that_judge_rightly(
    rewards: list[float], data: st.DataObject
) -> None:
    label = data.draw(st.integers(-1, len(rewards) - 1))
    threshold = data.draw(st.sampled_from([-0.1, 0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0]))
    low, high = find_threshold_range(rewards, label)
    assert (low <= threshold < high) == (find_first_error(rewards, threshold) == label)


@given(st.integers(0, 2**32))
def test_no_threshold_is_better_than_the_chosen_one(seed: int) -> None:
    rng = random.Random(seed)
    items = read(
        ProcessBench(),
        [(process_row(n, "gsm8k", -1 if n % 2 else n % 4), "") for n in range(rng.randint(2, 30))],
    )
    scored = [ScoredItem(item, [rng.randint(0, 8) / 8 for _ in range(4)]) for item in items]
    chosen = choose_threshold(scored)
    assert chosen is not None

    def get_f1(threshold: float) -> float:
        benchmark = build_benchmark("processbench", threshold=str(threshold))
        return benchmark.compute_result(scored).sections["GSM8K"].score

    grid = [(n + 0.5) / 8 for n in range(-1, 9)]
    assert get_f1(chosen) == max(map(get_f1, grid))
    assert get_f1(chosen) == ProcessBench().compute_result(scored).sections["GSM8K"].score


def compute(threshold: str, *, with_gsm8k: bool = True) -> BenchmarkResult:
    """Two subsets whose best thresholds are 0.3 and 0.7."""
    benchmark = build_benchmark("processbench", threshold=threshold)
    scored = []
    for subset, best in (("gsm8k", 0.3), ("math", 0.7)):
        if subset == "math" or with_gsm8k:
            for number, label in enumerate([1, 2, -1, -1]):
                (item,) = read(benchmark, [(process_row(number, subset, label), "x.json")])
                rewards = [best + (-0.1 if i == label else 0.1) for i in range(4)]
                scored.append(ScoredItem(item, rewards))
    return benchmark.compute_result(scored)


def test_threshold_is_that_of_gsm8k_or_of_each_subset() -> None:
    result = compute("gsm8k")
    assert result.extra["thresholds"] == {"GSM8K": pytest.approx(0.3), "MATH": pytest.approx(0.3)}
    assert {name: section.score for name, section in result.sections.items()} == {
        "GSM8K": 1.0,
        "MATH": 0.0,
    }
    result = compute("subset")
    assert result.extra["thresholds"]["MATH"] == pytest.approx(0.7)
    assert result.overall == 1.0
    assert compute("0.7").sections["GSM8K"].score == 0.0
    assert compute("0.7").sections["MATH"].score == 1.0


def test_threshold_cannot_be_chosen_without_gsm8k() -> None:
    result = compute("gsm8k", with_gsm8k=False)
    assert (result.overall, result.sections, result.subsets) == (None, {}, {})
    assert result.missing[0] == (
        "the threshold: it is chosen on GSM8K, which has 0 solutions with a wrong step and 0 "
        "without here; give one with --variant threshold=NUMBER"
    )
    assert "subset MATH/error: has 2 of 594 items" in result.missing
    assert compute("subset", with_gsm8k=False).overall == 1.0


@pytest.mark.parametrize(
    ("threshold", "reason", "accuracies"),
    [
        ("gsm8k", "the threshold: it is chosen on GSM8K, which has 3 solutions with a wrong", {}),
        ("subset", "F1 and the threshold of GSM8K: they need solutions with and without", {}),
        ("0.5", "F1 of GSM8K: it needs solutions with and without", {"GSM8K/error": 1.0}),
    ],
)
def test_result_without_f1_says_why(
    threshold: str, reason: str, accuracies: dict[str, float]
) -> None:
    benchmark = build_benchmark("processbench", threshold=threshold)
    items = read(benchmark, [(process_row(n, "gsm8k", n), "") for n in range(3)])
    result = benchmark.compute_result([ScoredItem(item, judge(item, True)) for item in items])
    assert (result.overall, result.sections) == (None, {})
    assert {name: subset.score for name, subset in result.subsets.items()} == accuracies
    assert result.missing[0].startswith(reason)
    assert result.missing[1:3] == (
        "subset GSM8K/error: has 3 of 207 items",
        "subset GSM8K/correct: has none of 193 items",
    )


def test_subset_without_f1_is_named_next_to_one_with_it() -> None:
    benchmark = ProcessBench()
    rows = [(process_row(n, "gsm8k", n), "") for n in (-1, 0)]
    items = read(benchmark, [*rows, (process_row(0, "math", 0), "")])
    result = benchmark.compute_result([ScoredItem(item, judge(item, True)) for item in items])
    assert list(result.sections) == ["GSM8K"]
    assert result.missing[0] == "F1 of MATH: it needs solutions with and without a wrong step"


def test_items_are_graded_by_the_threshold_of_all_items() -> None:
    benchmark = ProcessBench()
    items = read(benchmark, [(process_row(n, "gsm8k", n), "") for n in range(-1, 3)])
    scored = [ScoredItem(item, judge(item, item.metadata["label"] != 2)) for item in items]
    assert [grade.right for grade in benchmark.grade_items(scored)] == [1, 1, 1, 0]


def test_item_is_a_problem_and_its_steps() -> None:
    (item,) = read(ProcessBench(), [(process_row(3, "omnimath", 1), "test.json")])
    assert (item.id, item.subset, item.metadata) == ("omnimath-3", "omnimath", {"label": 1})
    assert item.step_item == StepItem("How many?", ("So 0.", "So 1.", "So 2.", "So 3."))
    row = process_row(3, "gsm8k", 0) | {"id": "3"}
    assert ProcessBench().read(row, "data/gsm8k-00000.json").subset == "gsm8k"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 4}, "`label` is 4; it must be the index of the first of the 4 steps"),
        ({"label": None}, "`label` is null"),
        ({"label": "0"}, "`label` is '0'"),
        ({"steps": []}, "`steps` is an empty list"),
        ({"steps": "one"}, "`steps` is 'one'; it must be a list"),
        ({"problem": 3}, "`problem` is 3; it must be text"),
        ({"id": "aime-3"}, "the id or the name of the file must start with gsm8k, math"),
    ],
)
def test_invalid_row_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ProcessBench().read(process_row(3, "gsm8k", 0) | change, "rows.json")


@pytest.mark.parametrize("value", ["half", "nan", "inf", ""])
def test_threshold_must_be_a_name_or_a_number(value: str) -> None:
    with pytest.raises(BenchmarkDataError, match="gsm8k or subset or NUMBER"):
        build_benchmark("processbench", threshold=value)
