"""PPE: votes without ties, verified answers by sampled pairs, best-of-n curves."""

from __future__ import annotations

import pytest
from published_rows import graded_row, read, scored, vote_row, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.ppe import SETS
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.errors import BenchmarkDataError

VOTES = BENCHMARKS["ppe-preference"]
GRADED = BENCHMARKS["ppe-correctness"]


def test_tie_votes_do_not_count() -> None:
    winners = ["model_a", "model_b", "model_b", "tie", "tie (bothbad)"]
    rows = [(vote_row(n, winner), "t.parquet") for n, winner in enumerate(winners)]
    result = VOTES.compute_result(scored(read(VOTES, rows), lambda item: (1.0, 0.0)))
    assert result.overall == 1 / 3
    assert result.sections["votes"].num_items == 3
    assert result.extra["num_ties"] == 2
    assert result.missing == ("5 of 16038 votes",)


def test_languages_are_subsets() -> None:
    rows = [(vote_row(0, "model_a", "English"), ""), (vote_row(1, "model_a", "German"), "")]
    rows.append((vote_row(2, "tie", "Finnish"), ""))
    unnamed = vote_row(3, "model_b")
    del unnamed["language"]
    items = read(VOTES, [*rows, (unnamed, "")])
    result = VOTES.compute_result(scored(items, lambda item: (float(item.subset == "German"), 0.5)))
    assert {name: score.score for name, score in result.subsets.items()} == {
        "English": 0.0,
        "German": 1.0,
        "unknown": 1.0,
    }


def test_equal_rewards_are_wrong() -> None:
    for benchmark, name in ((VOTES, "ppe-preference"), (GRADED, "ppe-correctness")):
        items = read(benchmark, whole(name)[:50])
        equal = benchmark.compute_result(scored(items, lambda item: [0.0] * len(item.responses)))
        assert equal.overall == 0.0


def test_correctness_row_gives_pairs_and_curve() -> None:
    row = graded_row(0, [True, False, True, False], [(0, 1), (3, 2), (0, 2), (2, 1)])
    item = GRADED.read(row, "PPE-MATH-Best-of-K/train.parquet")
    assert item.subset == "MATH/someone"
    assert item.metadata["truth"] == (1.0, 0.0, 1.0, 0.0)
    # A pair of two right answers is skipped.
    assert item.preferences == ((0, 1), (2, 3), (2, 1))
    result = GRADED.compute_result([ScoredItem(item, [3.0, 2.0, 1.0, 0.0])])
    assert result.sections["MATH"].score == 2 / 3
    assert result.overall == result.extra["accuracy"] == 2 / 3
    curve = result.extra["best_of_n"]["MATH"]
    assert curve["n"] == [1, 2, 4]
    # In all six pairs of answers except 2 and 4, the answer with the higher reward is right.
    assert curve["reward"] == pytest.approx([2 / 4, (3 + 0 + 1) / 6, 1.0], abs=1e-15)


def test_overall_weighs_sets_equally() -> None:
    rows = [(graded_row(n, [1, 0], [(0, 1)]), "gpqa.parquet") for n in range(3)]
    rows += [(graded_row(9, [1, 0], [(0, 1)]), "mbpp_plus.parquet")]
    items = read(GRADED, rows)
    right = [ScoredItem(item, (float("GPQA" in item.subset), 0.5)) for item in items]
    result = GRADED.compute_result(right)
    assert result.overall == 0.5
    assert result.extra["accuracy"] == 0.75
    assert result.extra["best_of_n"]["overall"]["reward"] == [0.5, 0.5]
    assert "section MATH: no items" in result.missing
    assert "4 of 2555 prompts" in result.missing


def test_complete_data_has_nothing_missing() -> None:
    items = read(GRADED, whole("ppe-correctness"))
    result = GRADED.compute_result(scored(items, lambda item: item.metadata["truth"]))
    assert result.missing == ()
    assert result.overall == 1.0
    assert list(result.sections) == list(SETS)
    curve = result.extra["best_of_n"]["overall"]
    assert curve["n"] == [1, 2, 4, 8, 16, 32]
    assert curve["reward"] == curve["best"]
    assert curve["reward"][0] == pytest.approx(curve["worst"][0], abs=1e-12)
    votes = read(VOTES, whole("ppe-preference"))
    result = VOTES.compute_result(scored(votes, lambda item: (1.0, 0.0)))
    assert (result.overall, result.missing) == (0.5, ())


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
def test_section_is_read_from_file_name(origin: str, section: str) -> None:
    row = graded_row(0, [1, 0], [(0, 1)])
    assert GRADED.read(row, origin).metadata["section"] == section
    del row["model_name"]
    assert GRADED.read(row, origin).subset == section
    assert GRADED.read(row | {"benchmark": "MATH"}, "a.json").subset == "MATH"


@pytest.mark.parametrize(
    ("change", "origin", "message"),
    [
        ({}, "train.parquet", "the set of the row is unknown; the name of the file"),
        ({"response_2": None}, "math.json", "the column `response_2` is null"),
        ({"response_3": "c"}, "math.json", "more responses than the 2 `scores`"),
        ({"scores": [1.0, float("nan")]}, "math.json", "`scores` is nan; it must be a finite"),
        ({"scores": []}, "math.json", "`scores` is an empty list"),
        ({"sampled_conflict_pairs": [[0, 2]]}, "math.json", "has the index 2, counted from 0"),
        ({"sampled_conflict_pairs": [[0]]}, "math.json", "is not a pair of numbers"),
        ({"sampled_conflict_pairs": [[0, -1]]}, "math.json", "a whole number of at least 0"),
        ({"sampled_conflict_pairs": None}, "math.json", "it must be a list"),
    ],
)
def test_invalid_rows_are_refused(change: dict[str, object], origin: str, message: str) -> None:
    row = graded_row(0, [1, 0], [(0, 1)]) | change
    with pytest.raises(BenchmarkDataError, match=message):
        GRADED.read(row, origin)
    with pytest.raises(BenchmarkDataError, match="`winner` is 'nobody'; it must be model_a"):
        VOTES.read(vote_row(0, "nobody"), origin)
