"""RewardBench 2: shared highest rewards, the formula of Ties, and unpaired numbers."""

from __future__ import annotations

import pytest
from published_rows import read, rewardbench2_row, scored, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench2 import grade_best, measure_tie_spread
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rewardbench2"]


def compute_ties(
    rows: dict[str, tuple[list[float], list[float]]], **options: str
) -> dict[str, float]:
    benchmark = build_benchmark("rewardbench2", **options)
    items = [
        ScoredItem(
            benchmark.read(rewardbench2_row(name, "Ties", len(right), len(wrong)), "t.parquet"),
            [*right, *wrong],
        )
        for name, (right, wrong) in rows.items()
    ]
    return dict(benchmark.compute_result(items).extra.get("ties", {}))


@pytest.mark.parametrize(
    ("rewards", "share"),
    [
        ((3, 1, 2, 0), 1),
        ((2, 2, 1, 0), 1 / 2),
        ((2, 2, 2, 0), 1 / 3),
        ((1, 1, 1, 1), 1 / 4),
        ((1, 2, 0, 0), 0),
        ((-1, -2, -3, -4), 1),
    ],
)
def test_shared_highest_reward_counts_in_part(rewards: tuple[float, ...], share: float) -> None:
    item = ORIGINAL.read(rewardbench2_row("1", "Focus"), "t.parquet")
    assert grade_best(ScoredItem(item, rewards)) == (share, 1)


WORKED = {
    "ref:0": ([5.0], [1.0, 0.0]),
    "ref:1": ([2.0], [3.0]),
    "tied:0": ([4.0, 3.0, 3.5], [1.0, 0.0]),
    "tied:1": ([6.0, 2.0], [1.0]),
}


def test_ties_score_of_worked_example() -> None:
    result = compute_ties(WORKED)
    assert round(result["margin"], 6) == -0.043345
    assert round(result["score"], 6) == 0.649567
    assert {name: result[name] for name in ("accuracy_ref", "accuracy_tied")} == {
        "accuracy_ref": 0.5,
        "accuracy_tied": 1.0,
    }
    assert (result["preferred"], result["preferred_hard"]) == (0.5, 0.5)


def test_ties_margin_without_spread() -> None:
    better = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [1.0])}
    assert compute_ties(better)["margin"] == 1.0
    assert compute_ties(better)["score"] == pytest.approx(1.01, abs=1e-15)
    worse = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [9.0])}
    assert compute_ties(worse)["margin"] == -1.0
    equal = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [4.0])}
    assert compute_ties(equal)["margin"] == 0.0
    for rows in (better, worse, equal):
        assert compute_ties(rows, no_spread="left-out")["margin"] == 0.0
    worked = {k.replace("0", "1"): v for k, v in WORKED.items() if "0" in k}
    half = compute_ties({**better, **worked})
    assert half["margin"] == pytest.approx((1 + 0.7615941559557649) / 2, abs=1e-15)


def test_tied_row_with_one_right_answer_has_no_spread() -> None:
    assert measure_tie_spread((2.0, 1.0), 1) == (True, None, 1.0)
    rows = {**WORKED, "ref:2": ([1.0], [0.0]), "tied:2": ([1.0], [0.0])}
    assert compute_ties(rows)["preferred"] == 0.5
    assert compute_ties(rows)["accuracy_tied"] == 1.0


def test_unpaired_ties_numbers_are_reported() -> None:
    rows = {**WORKED, "tied:7": ([1.0, 1.0], [0.0]), "ref:8": ([1.0], [0.0])}
    items = [
        ScoredItem(
            ORIGINAL.read(rewardbench2_row(name, "Ties", len(right), len(wrong)), "t.parquet"),
            [*right, *wrong],
        )
        for name, (right, wrong) in rows.items()
    ]
    result = ORIGINAL.compute_result(items)
    assert "subset Ties: the other row of 2 numbers: 7, 8" in result.missing
    assert "subset Ties: has 6 of 102 items" in result.missing
    alone = ORIGINAL.compute_result([one for one in items if one.item.id.startswith("tied")])
    assert alone.overall is None
    assert "Ties" not in alone.subsets
    assert any("so no score" in lack for lack in alone.missing)


def test_overall_is_mean_of_six_subsets() -> None:
    items = read(ORIGINAL, whole("rewardbench2"))
    result = ORIGINAL.compute_result(scored(items, lambda item: [1.0] * len(item.responses)))
    assert result.missing == ()
    assert list(result.sections) == [
        "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties",
    ]  # fmt: skip
    # With equal rewards the other subsets score a quarter each; in Ties, nothing is right or
    # preferred.
    assert result.overall == 5 * 0.25 / 6
    best = ORIGINAL.compute_result(
        scored(items, lambda item: [1.0, *[0.0] * (len(item.responses) - 1)])
    )
    assert best.sections["Math"].num_correct == 183


def test_subset_names_ignore_case() -> None:
    row = rewardbench2_row("ref:1", "ties", 1, 2)
    assert ORIGINAL.read(row, "t.parquet").subset == "Ties"
    assert ORIGINAL.read(row, "t.parquet").metadata["cluster"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rewardbench2_row("1", "Chat"), "`subset` is 'Chat'; it must be Factuality, Precise IF"),
        (rewardbench2_row("1", "Focus") | {"subset": None}, "`subset` is null"),
        (rewardbench2_row("1", "Ties"), "ids of Ties are ref:NUMBER or tied:NUMBER"),
        (rewardbench2_row("1", "Math", 2), "Math has one chosen answer; this row has 2"),
        (rewardbench2_row("1", "Math", 1, 0), "the column `rejected` is an empty list"),
        (rewardbench2_row("ref:1", "Ties") | {"num_correct": 4}, "`num_correct` is 4; it must be"),
        (rewardbench2_row("ref:1", "Ties") | {"num_correct": "1"}, "must be a whole number"),
        (rewardbench2_row("1", "Math") | {"chosen": [None]}, "an item of the column `chosen`"),
    ],
)
def test_invalid_rows_are_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(row, "t.parquet")
