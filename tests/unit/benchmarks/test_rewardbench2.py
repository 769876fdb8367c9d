"""RewardBench 2: shared best places, the formula of Ties, and unpaired numbers."""

from __future__ import annotations

import pytest
from published_rows import read, rewardbench2_row, scored, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench2 import grade_best, measure_tie_spread
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rewardbench2"]


def ties(rows: dict[str, tuple[list[float], list[float]]], **options: str) -> dict[str, float]:
    made = build_benchmark("rewardbench2", **options)
    items = [
        ScoredItem(
            made.read(rewardbench2_row(name, "Ties", len(right), len(wrong)), "t.parquet"),
            [*right, *wrong],
        )
        for name, (right, wrong) in rows.items()
    ]
    return dict(made.compute_result(items).extra.get("ties", {}))


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
def test_the_best_place_is_shared(rewards: tuple[float, ...], share: float) -> None:
    item = ORIGINAL.read(rewardbench2_row("1", "Focus"), "t.parquet")
    assert grade_best(ScoredItem(item, rewards)) == (share, 1)


WORKED = {
    "ref:0": ([5.0], [1.0, 0.0]),
    "ref:1": ([2.0], [3.0]),
    "tied:0": ([4.0, 3.0, 3.5], [1.0, 0.0]),
    "tied:1": ([6.0, 2.0], [1.0]),
}


def test_the_worked_example_of_ties() -> None:
    found = ties(WORKED)
    assert round(found["margin"], 6) == -0.043345
    assert round(found["score"], 6) == 0.649567
    assert {name: found[name] for name in ("accuracy_ref", "accuracy_tied")} == {
        "accuracy_ref": 0.5,
        "accuracy_tied": 1.0,
    }
    assert (found["preferred"], found["preferred_hard"]) == (0.5, 0.5)


def test_right_answers_with_equal_rewards() -> None:
    better = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [1.0])}
    assert ties(better)["margin"] == 1.0
    assert ties(better)["score"] == pytest.approx(1.01, abs=1e-15)
    worse = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [9.0])}
    assert ties(worse)["margin"] == -1.0
    equal = {"ref:0": ([5.0], [1.0]), "tied:0": ([4.0, 4.0], [4.0])}
    assert ties(equal)["margin"] == 0.0
    for rows in (better, worse, equal):
        assert ties(rows, no_spread="left-out")["margin"] == 0.0
    half = ties({**better, **{k.replace("0", "1"): v for k, v in WORKED.items() if "0" in k}})
    assert half["margin"] == pytest.approx((1 + 0.7615941559557649) / 2, abs=1e-15)


def test_a_tied_row_with_one_right_answer_has_no_spread() -> None:
    assert measure_tie_spread((2.0, 1.0), 1) == (True, None, 1.0)
    rows = {**WORKED, "ref:2": ([1.0], [0.0]), "tied:2": ([1.0], [0.0])}
    assert ties(rows)["preferred"] == 0.5
    assert ties(rows)["accuracy_tied"] == 1.0


def test_unpaired_numbers_are_told() -> None:
    rows = {**WORKED, "tied:7": ([1.0, 1.0], [0.0]), "ref:8": ([1.0], [0.0])}
    items = [
        ScoredItem(
            ORIGINAL.read(rewardbench2_row(name, "Ties", len(right), len(wrong)), "t.parquet"),
            [*right, *wrong],
        )
        for name, (right, wrong) in rows.items()
    ]
    found = ORIGINAL.compute_result(items)
    assert "subset Ties: the other row of 2 numbers: 7, 8" in found.missing
    assert "subset Ties: 6 of 102 items" in found.missing
    alone = ORIGINAL.compute_result([one for one in items if one.item.id.startswith("tied")])
    assert alone.overall is None
    assert "Ties" not in alone.subsets
    assert any("so no score" in lack for lack in alone.missing)


def test_the_whole_is_the_mean_of_six() -> None:
    items = read(ORIGINAL, whole("rewardbench2"))
    found = ORIGINAL.compute_result(scored(items, lambda item: [1.0] * len(item.responses)))
    assert found.missing == ()
    assert list(found.sections) == [
        "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties",
    ]  # fmt: skip
    # All equal: a quarter each; of Ties nothing is right, and nothing is preferred.
    assert found.overall == 5 * 0.25 / 6
    best = ORIGINAL.compute_result(
        scored(items, lambda item: [1.0, *[0.0] * (len(item.responses) - 1)])
    )
    assert best.sections["Math"].num_correct == 183


def test_names_are_read_in_any_case() -> None:
    row = rewardbench2_row("ref:1", "ties", 1, 2)
    assert ORIGINAL.read(row, "t.parquet").subset == "Ties"
    assert ORIGINAL.read(row, "t.parquet").metadata["cluster"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rewardbench2_row("1", "Chat"), "`subset` is 'Chat'; it must be Factuality, Precise IF"),
        (rewardbench2_row("1", "Focus") | {"subset": None}, "`subset` is null"),
        (rewardbench2_row("1", "Ties"), "ids of Ties are ref:NUMBER or tied:NUMBER"),
        (rewardbench2_row("1", "Math", 2), "the subset Math has one chosen answer a row, not 2"),
        (rewardbench2_row("1", "Math", 1, 0), "the column `rejected` is an empty list"),
        (rewardbench2_row("ref:1", "Ties") | {"num_correct": 4}, "`num_correct` is 4 of 4"),
        (rewardbench2_row("ref:1", "Ties") | {"num_correct": "1"}, "must be a whole number"),
        (rewardbench2_row("1", "Math") | {"chosen": [None]}, "an item of the column `chosen`"),
    ],
)
def test_rows_that_are_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(row, "t.parquet")
