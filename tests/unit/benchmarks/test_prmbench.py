"""PRMBench: PRMScore by independent arithmetic, both preparations, and rows as published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import BENCHMARK_DATA
from published_rows import prm_row, read, whole

from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.prmbench import CATEGORIES, CLASSES, PRMBench
from rm_core.benchmarks.registry import build_benchmark
from rm_core.errors import BenchmarkDataError

DATA = BENCHMARK_DATA / "prmbench"
PREPARATIONS = ["model", "prmbench"]


def count(labels: np.ndarray, predictions: np.ndarray) -> tuple[float, float]:
    """F1 of right steps and of wrong steps, from precision and recall."""
    scores = []
    for is_right in (True, False):
        hits = np.sum((labels == is_right) & (predictions == is_right))
        precision = hits / np.sum(predictions == is_right)
        recall = hits / np.sum(labels == is_right)
        scores.append(float(2 * precision * recall / (precision + recall)))
    return scores[0], scores[1]


@pytest.mark.skipif(not DATA.is_dir(), reason="PRMBench's data is missing")
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_random_rewards_match_numpy(preparation: str) -> None:
    benchmark = build_benchmark("prmbench", preparation=preparation)
    rng = np.random.default_rng(5)
    scored: dict[tuple[str, str], ScoredItem] = {}
    labels: dict[str, list[bool]] = {}
    predictions: dict[str, list[bool]] = {}
    for file in sorted(DATA.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            item = benchmark.read(row, file.name)
            if item.key in scored:
                continue
            rewards = rng.random(len(row["modified_process"]) + (preparation == "prmbench"))
            scored[item.key] = ScoredItem(item, rewards.tolist())
            assert len(item.responses) == len(rewards)
            name = row["classification"]
            labels.setdefault(name, []).extend(
                i + 1 not in row["error_steps"] for i in range(len(rewards))
            )
            judged = rewards > 0.5
            if preparation == "prmbench":
                judged = np.diff(rewards, prepend=0.0) > -0.05
            predictions.setdefault(name, []).extend(judged.tolist())
    result = benchmark.compute_result(list(scored.values()))
    by_class = {}
    for name in labels:
        f1, negative_f1 = 0.0, 0.0
        if name == "multi_solutions":
            hits = float(np.sum(predictions[name]))
            f1 = 2 * hits / (hits + len(labels[name]))
            by_class[name] = f1
        else:
            f1, negative_f1 = count(np.array(labels[name]), np.array(predictions[name]))
            by_class[name] = (f1 + negative_f1) / 2
    assert {n: s.score for n, s in result.subsets.items()} == pytest.approx(by_class, abs=1e-12)
    pooled = count(np.concatenate([*labels.values()]), np.concatenate([*predictions.values()]))
    assert result.overall == pytest.approx(sum(pooled) / 2, abs=1e-12)
    assert (result.extra["f1"], result.extra["negative_f1"]) == pytest.approx(pooled, abs=1e-12)
    means = {
        category: sum(by_class[name] for name in names) / len(names)
        for category, names in CATEGORIES.items()
    }
    assert {n: s.score for n, s in result.sections.items()} == pytest.approx(means, abs=1e-12)
    assert result.extra["mean_of_sections"] == pytest.approx(sum(means.values()) / 3, abs=1e-12)
    assert len([name for name in result.missing if name.startswith("class ")]) == 8


def test_counts_equal_published_rows() -> None:
    assert sum(CLASSES.values()) == 6211  # of 6,216 rows; five repeat the idx of another one
    assert sorted(name for names in CATEGORIES.values() for name in names) == sorted(CLASSES)
    benchmark = PRMBench()
    items = read(benchmark, whole("prmbench"))
    scored = [ScoredItem(item, judge_rightly(item)) for item in items]
    result = benchmark.compute_result(scored)
    assert result.missing == ()
    assert result.overall == 1.0
    assert {score.score for score in result.sections.values()} == {1.0}
    assert result.sections["Soundness"].num_items == 3029
    assert result.extra["mean_of_sections"] == 1.0
    assert result.extra["steps"]["circular"]["true_negative"] == 758 * 2 - 252
    assert benchmark.compute_result(scored[:758]).missing[0] == (
        "class circular: has none of 758 items"
    )


def judge_rightly(item: Item) -> list[float]:
    errors = item.metadata["errors"]
    return [0.2 if index in errors else 0.8 for index in range(len(item.responses))]


def compute(rows: Sequence[dict[str, Any]], rewards: Sequence[Sequence[float]], **options: str):  # type: ignore[no-untyped-def]
    benchmark = build_benchmark("prmbench", **options)
    items = [benchmark.read(row, "x.jsonl") for row in rows]
    return benchmark.compute_result(
        [ScoredItem(item, one) for item, one in zip(items, rewards, strict=True)]
    )


def test_worked_example() -> None:
    """Two of three right steps and one of two wrong steps are labeled rightly."""
    result = compute([prm_row(0, "deception", [2, 4], 5)], [[0.9, 0.6, 0.9, 0.1, 0.4]])
    confusion = {"true_positive": 2, "false_positive": 1, "true_negative": 1, "false_negative": 1}
    assert result.extra["steps"] == {"deception": confusion}
    assert result.extra["f1"] == pytest.approx(4 / 6)
    assert result.extra["negative_f1"] == pytest.approx(2 / 4)
    assert result.overall == pytest.approx((4 / 6 + 2 / 4) / 2)
    at_03 = compute([prm_row(0, "deception", [4], 5)], [[0.9, 0.6, 0.9, 0.1, 0.4]], threshold="0.3")
    assert at_03.overall == 1.0


def test_class_without_errors_counts_f1_of_right_steps_only() -> None:
    rows = [prm_row(0, "multi_solutions", []), prm_row(0, "circular", [1])]
    result = compute(rows, [[0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.9, 0.9]])
    assert result.subsets["multi_solutions"].score == pytest.approx(6 / 7)
    assert result.subsets["circular"].score == 1.0
    # Pooled: seven right steps, of which one is labeled wrong; one wrong step.
    assert result.overall == pytest.approx((12 / 13 + 2 / 3) / 2)
    assert result.sections["Sensitivity"].score == result.subsets["multi_solutions"].score


def test_prmbench_preparation_numbers_and_marks_steps() -> None:
    row = prm_row(0, "circular", [1])
    row["modified_process"] = ["1. One. ", "Step 2.  Two", "3 apples"]
    benchmark = PRMBench(build_benchmark("prmbench", preparation="prmbench").options)  # type: ignore[arg-type]
    item = benchmark.read(row, "")
    text = "ки".join(item.responses)
    assert text == "Step 1: One. ки\nStep 2: Two ки\nStep 3: 3 apples ки\n"
    assert benchmark.official_protocol.step_format == "skywork-prmbench"
    plain = PRMBench()
    assert plain.read(row, "").responses == ("1. One. ", "Step 2.  Two", "3 apples")
    assert plain.official_protocol.step_format is None


def test_prmbench_labels_are_falls_of_the_reward() -> None:
    rewards = [0.2, 0.16, 0.1, 0.6, 0.54]
    result = compute([prm_row(0, "circular", [3])], [rewards], preparation="prmbench")
    # The last reward is that of the line break after the last marker.
    assert result.extra["steps"]["circular"]["true_negative"] == 1
    assert result.extra["steps"]["circular"]["false_negative"] == 1  # 0.54 - 0.6
    assert result.extra["steps"]["circular"]["true_positive"] == 3
    stricter = compute(
        [prm_row(0, "circular", [3])], [rewards], preparation="prmbench", threshold="-0.1"
    )
    assert stricter.extra["steps"]["circular"]["false_positive"] == 1


def test_steps_without_reward_and_errors_after_the_last_step_do_not_count() -> None:
    result = compute([prm_row(0, "circular", [1, 4, 9])], [[0.9, 0.9]], preparation="prmbench")
    assert sum(result.extra["steps"]["circular"].values()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classification": "correct"}, "`classification` is 'correct'; it must be"),
        ({"modified_process": []}, "`modified_process` is an empty list"),
        ({"error_steps": [-1]}, "`error_steps` is -1; it must be a whole number"),
        ({"error_steps": None}, "`error_steps` is null"),
        ({"idx": ""}, "`idx` is ''"),
    ],
)
def test_invalid_row_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        PRMBench().read(prm_row(0, "circular", [1]) | change, "rows.jsonl")
