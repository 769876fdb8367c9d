"""PPE: votes without ties, verified answers by sampled pairs, curves of best of n."""

from __future__ import annotations

import pytest
from published_rows import graded_row, read, scored, vote_row, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.ppe import SETS
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.errors import BenchmarkDataError

VOTES = BENCHMARKS["ppe-preference"]
GRADED = BENCHMARKS["ppe-correctness"]


def test_votes_that_are_ties_decide_nothing() -> None:
    winners = ["model_a", "model_b", "model_b", "tie", "tie (bothbad)"]
    rows = [(vote_row(n, winner), "t.parquet") for n, winner in enumerate(winners)]
    found = VOTES.compute_result(scored(read(VOTES, rows), lambda item: (1.0, 0.0)))
    assert found.overall == 1 / 3
    assert found.sections["votes"].num_items == 3
    assert found.extra["num_ties"] == 2
    assert found.missing == ("5 of 16038 votes",)


def test_languages_are_subsets() -> None:
    rows = [(vote_row(0, "model_a", "English"), ""), (vote_row(1, "model_a", "German"), "")]
    rows.append((vote_row(2, "tie", "Finnish"), ""))
    unnamed = vote_row(3, "model_b")
    del unnamed["language"]
    items = read(VOTES, [*rows, (unnamed, "")])
    found = VOTES.compute_result(scored(items, lambda item: (float(item.subset == "German"), 0.5)))
    assert {name: part.score for name, part in found.subsets.items()} == {
        "English": 0.0,
        "German": 1.0,
        "unknown": 1.0,
    }


def test_equal_rewards_are_wrong() -> None:
    for made, name in ((VOTES, "ppe-preference"), (GRADED, "ppe-correctness")):
        items = read(made, whole(name)[:50])
        equal = made.compute_result(scored(items, lambda item: [0.0] * len(item.responses)))
        assert equal.overall == 0.0


def test_pairs_of_verified_answers() -> None:
    row = graded_row(0, [True, False, True, False], [(0, 1), (3, 2), (0, 2), (2, 1)])
    item = GRADED.read(row, "PPE-MATH-Best-of-K/train.parquet")
    assert item.subset == "MATH/someone"
    assert item.metadata["truth"] == (1.0, 0.0, 1.0, 0.0)
    # Two right answers contradict nothing.
    assert item.preferences == ((0, 1), (2, 3), (2, 1))
    found = GRADED.compute_result([ScoredItem(item, [3.0, 2.0, 1.0, 0.0])])
    assert found.sections["MATH"].score == 2 / 3
    assert found.overall == found.extra["accuracy"] == 2 / 3
    curve = found.extra["best_of_n"]["MATH"]
    assert curve["n"] == [1, 2, 4]
    # Of the six pairs of answers, the one of the higher reward is right in all but that of 2 and 4.
    assert curve["reward"] == pytest.approx([2 / 4, (3 + 0 + 1) / 6, 1.0], abs=1e-15)


def test_sets_weigh_the_same_whatever_their_size() -> None:
    rows = [(graded_row(n, [1, 0], [(0, 1)]), "gpqa.parquet") for n in range(3)]
    rows += [(graded_row(9, [1, 0], [(0, 1)]), "mbpp_plus.parquet")]
    items = read(GRADED, rows)
    right = [ScoredItem(one, (float("GPQA" in one.subset), 0.5)) for one in items]
    found = GRADED.compute_result(right)
    assert found.overall == 0.5
    assert found.extra["accuracy"] == 0.75
    assert found.extra["best_of_n"]["overall"]["reward"] == [0.5, 0.5]
    assert "section MATH: no items" in found.missing
    assert "4 of 2555 prompts" in found.missing


def test_the_whole() -> None:
    items = read(GRADED, whole("ppe-correctness"))
    found = GRADED.compute_result(scored(items, lambda item: item.metadata["truth"]))
    assert found.missing == ()
    assert found.overall == 1.0
    assert list(found.sections) == list(SETS)
    curve = found.extra["best_of_n"]["overall"]
    assert curve["n"] == [1, 2, 4, 8, 16, 32]
    assert curve["reward"] == curve["best"]
    assert curve["reward"][0] == pytest.approx(curve["worst"][0], abs=1e-12)
    votes = read(VOTES, whole("ppe-preference"))
    found = VOTES.compute_result(scored(votes, lambda item: (1.0, 0.0)))
    assert (found.overall, found.missing) == (0.5, ())


@pytest.mark.parametrize(
    ("origin", "section"),
    [
        ("lmarena-ai/PPE-MMLU-Pro-Best-of-K/data/train-00000-of-00001.parquet", "MMLU-Pro"),
        ("ppe_mmlu_pro_best_of_k.parquet", "MMLU-Pro"),
        ("PPE-MBPP-Plus-Best-of-K/train.jsonl", "MBPP-Plus"),
        ("math/ifeval.jsonl", "IFEval"),
        ("gpqa.json", "GPQA"),
    ],
)
def test_the_set_is_told_by_the_name_of_the_file(origin: str, section: str) -> None:
    row = graded_row(0, [1, 0], [(0, 1)])
    assert GRADED.read(row, origin).metadata["section"] == section
    del row["model_name"]
    assert GRADED.read(row, origin).subset == section
    assert GRADED.read(row | {"benchmark": "MATH"}, "a.json").subset == "MATH"


@pytest.mark.parametrize(
    ("change", "origin", "message"),
    [
        ({}, "train.parquet", "which set the row is of is told by the name of its file"),
        ({"response_2": None}, "math.json", "the column `response_2` is null"),
        ({"response_3": "c"}, "math.json", "more responses than the 2 `scores`"),
        ({"scores": [1.0, float("nan")]}, "math.json", "`scores` is nan; it must be a finite"),
        ({"scores": []}, "math.json", "`scores` is an empty list"),
        ({"sampled_conflict_pairs": [[0, 2]]}, "math.json", "names response 2, counted from 0"),
        ({"sampled_conflict_pairs": [[0]]}, "math.json", "is no pair of numbers"),
        ({"sampled_conflict_pairs": [[0, -1]]}, "math.json", "a whole number of at least 0"),
        ({"sampled_conflict_pairs": None}, "math.json", "it must be a list"),
    ],
)
def test_rows_that_are_refused(change: dict[str, object], origin: str, message: str) -> None:
    row = graded_row(0, [1, 0], [(0, 1)]) | change
    with pytest.raises(BenchmarkDataError, match=message):
        GRADED.read(row, origin)
    with pytest.raises(BenchmarkDataError, match="`winner` is 'nobody'; it must be model_a"):
        VOTES.read(vote_row(0, "nobody"), origin)
