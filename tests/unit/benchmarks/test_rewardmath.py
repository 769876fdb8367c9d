"""RewardMATH: solutions of a problem joined, ties, ranks, and result files of its authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import read, scored, solution_row, whole

from rm_core.benchmarks.base import Preference
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.rewardmath import RIGHT_SOURCE, RewardMATH
from rm_core.errors import BenchmarkDataError
from serve.evaluation.data import load_data, load_published_rewards

BENCHMARK = RewardMATH()


def rows_of(problem: int, right: int = 0, num_rows: int = 10) -> list[tuple[dict[str, Any], str]]:
    return [(solution_row(problem, i, right=i == right), "a.json") for i in range(num_rows)]


def test_rows_of_a_problem_are_one_item() -> None:
    (item,) = read(BENCHMARK, rows_of(3, right=2))
    assert item.id == "3"
    assert item.subset == "Geometry"
    assert item.prompt == [{"role": "user", "content": "How much is 3?"}]
    assert item.responses == tuple(f"First {i}.\nThen {i}." for i in range(10))
    assert item.preferences == tuple(Preference(2, i) for i in range(10) if i != 2)


@pytest.mark.parametrize(
    ("rewards", "right", "pairs", "rank"),
    [
        ([5.0, *range(-9, 0)], 1.0, 1.0, 1),
        ([0.0, *range(-9, 0)], 1.0, 1.0, 1),
        ([-1.0, *range(-9, 0)], 0.0, 8 / 9, 2),  # a tie is wrong and ranks behind
        ([-4.5, *range(-9, 0)], 0.0, 5 / 9, 5),
        ([-10.0, *range(-9, 0)], 0.0, 0.0, 10),
        ([1.0] * 10, 0.0, 0.0, 10),
    ],
)
def test_figures_of_a_problem(rewards: list[float], right: float, pairs: float, rank: int) -> None:
    result = BENCHMARK.compute_result(scored(read(BENCHMARK, rows_of(0)), lambda _: rewards))
    assert result.overall == right
    assert result.extra == {"metrics": {"pairs": pairs, "mrr": 1 / rank}}
    assert result.missing == ("has 1 of 483 problems",)


def test_whole_benchmark_is_complete() -> None:
    items = read(BENCHMARK, whole("rewardmath"))
    result = BENCHMARK.compute_result(
        scored(items, lambda item: [float(r) for r in item.metadata["right"]])
    )
    assert (result.overall, result.missing) == (1.0, ())
    assert {name: subset.num_items for name, subset in result.subsets.items()} == {
        "Algebra": 242,
        "Geometry": 241,
    }


def test_problem_without_all_solutions_is_partial() -> None:
    rows = [row for row in whole("rewardmath") if row[0]["id"] not in (0, 12, 13)]
    items = read(BENCHMARK, rows)  # problem 0 has lost the right solution
    result = BENCHMARK.compute_result(scored(items, lambda item: [0.0] * len(item.responses)))
    assert result.missing == (
        "has 482 of 483 problems",
        "2 problems without one right and 9 wrong solutions",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"problem": "Another?"},
            "the problem 0 has other texts in the rows 0 and 1; rows of equal",
        ),
        ({"id": 0}, "the row 0 was read before; give each solution once"),
        ({"eval_solution": []}, "`eval_solution` is an empty list"),
        ({"eval_solution": None}, "the column `eval_solution` is null; it must be a list"),
        ({"solution_type": "right"}, "`solution_type` is 'right'; it must be chosen, rejected"),
        ({"problem_id": None}, "the column `problem_id` is null"),
    ],
)
def test_invalid_row_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [solution_row(0, 0, right=True), solution_row(0, 1) | changes]
    path = tmp_path / "direct.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(BenchmarkDataError, match=f"row 1 of .*{message}"):
        load_data(BENCHMARK, str(path), split=None, exclude=tmp_path / "out", notify=print)


def test_file_of_pairs_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "RewardMATH_direct.json").write_text(json.dumps([row for row, _ in rows_of(0)]))
    (tmp_path / "RewardMATH_pairwise.json").write_text(json.dumps([{"problem_id": 0}]))
    lines: list[str] = []
    data = load_data(
        BENCHMARK, str(tmp_path), split=None, exclude=tmp_path / "out", notify=lines.append
    )
    assert len(data.items) == 1
    assert lines == ["not read, since rewardmath is in other files: RewardMATH_pairwise.json"]


RESULT = {
    "problem": "How much?",
    "solution_reference": ["model-1", RIGHT_SOURCE, "model-2"],
    "score": [0.5, 2, -1.0],
}


def test_result_file_of_authors_has_items_and_rewards(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps([RESULT, RESULT | {"problem": "How many?"}]))
    first, second = load_published_rewards(BENCHMARK, path)
    assert first.rewards == [0.5, 2.0, -1.0]
    assert first.item.responses == ("model-1", RIGHT_SOURCE, "model-2")
    assert first.item.preferences == (Preference(1, 0), Preference(1, 2))
    assert first.item.key != second.item.key
    assert second.item.prompt == [{"role": "user", "content": "How many?"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": [1.0, 2.0]}, "the column `score` has 2 numbers for 3 solutions"),
        ({"score": [[1.0], [2.0], [3.0]]}, "`score` is a list; it must be a finite number"),
        ({"score": None}, "the column `score` is null; it must be a list"),
        ({"problem": 3}, "the column `problem` is 3; it must be text"),
    ],
)
def test_invalid_result_file_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps([RESULT, RESULT | changes]))
    with pytest.raises(BenchmarkDataError, match=f"result.json, row '1': .*{message}"):
        load_published_rewards(BENCHMARK, path)
    path.write_text(json.dumps([RESULT, {"id": 1}]))
    with pytest.raises(BenchmarkDataError, match="other columns than the first one"):
        load_published_rewards(BENCHMARK, path)


def test_score_file_is_no_result_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "0", "rewards": [1.0]}\n')
    assert load_published_rewards(BENCHMARK, path) == []
    path.write_text(json.dumps(RESULT))
    assert load_published_rewards(BENCHMARKS["rewardbench"], path) == []
