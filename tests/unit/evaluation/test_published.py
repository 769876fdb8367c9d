"""Our figures beside published ones, and the boards made of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rm_core.benchmarks.base import BenchmarkResult, SubsetScore
from rm_core.benchmarks.registry import BENCHMARKS
from serve.errors import EvaluationError
from serve.evaluation.leaderboard import build_leaderboard, print_leaderboard
from serve.evaluation.published import (
    compare_with_published,
    get_complete_metric,
    iter_published_rows,
)

GEMMA = "Skywork/Skywork-Reward-Gemma-2-27B"


def rewardbench(overall: float, missing: tuple[str, ...] = ()) -> BenchmarkResult:
    sections = {
        "Chat": SubsetScore(0.95, 358, 358),
        "Chat Hard": SubsetScore(0.9, 400, 456),
        "Safety": SubsetScore(0.92, 740, 740),
        "Reasoning": SubsetScore(0.97, 1431, 1431),
    }
    return BenchmarkResult(overall, sections, {}, {}, missing)


def test_both_runs_of_v02_and_why_they_differ() -> None:
    figures = rewardbench(0.935)
    found = compare_with_published(BENCHMARKS["rewardbench"], ["x", GEMMA + "-v0.2"], figures)
    overall = [one for one in found if one.metric == "overall"]
    assert [one.published for one in overall] == pytest.approx([0.943, 0.944, 0.943])
    assert {one.ours for one in overall} == {0.935}
    assert "Run shown on the model card." in overall[0].note
    assert "Two RewardBench runs are published" in overall[0].note
    assert "README" in overall[1].source


def test_the_correction_of_xstest_is_a_known_reason() -> None:
    found = compare_with_published(BENCHMARKS["rewardbench"], [GEMMA], rewardbench(0.9))
    assert any("swapped until 10 September 2024" in one.note for one in found)
    notes = {round(one.published, 3): one.note for one in found if one.metric == "Safety"}
    assert "With the corrected XSTest counts." in notes[0.919]
    assert "With the two XSTest counts swapped." in notes[0.92]


def test_float16_is_a_known_reason_of_rewardbench2_alone() -> None:
    name = ["Skywork/Skywork-Reward-V2-Qwen3-8B"]
    empty = BenchmarkResult(None, {}, {}, {}, ("all",))
    second = compare_with_published(BENCHMARKS["rewardbench2"], name, empty)
    assert any("in float16" in one.note for one in second)
    first = compare_with_published(BENCHMARKS["rewardbench"], name, empty)
    assert first
    assert not any("in float16" in one.note for one in first)
    assert {one.ours for one in (*first, *second)} == {None}


def test_an_unknown_checkpoint_is_compared_with_nothing() -> None:
    assert (
        compare_with_published(BENCHMARKS["rewardbench"], ["demo", "some/other"], rewardbench(0.9))
        == ()
    )


def test_a_part_is_not_set_beside_the_whole() -> None:
    partial = rewardbench(0.935, ("subset llmbar-natural: 44 of 100 items",))
    assert get_complete_metric(partial, "overall") is None
    assert get_complete_metric(partial, "Chat Hard") is None
    assert get_complete_metric(partial, "Chat") == 0.95
    assert get_complete_metric(partial, "Jokes") is None


def test_judgebench_as_others_print_it_is_the_mean_of_its_categories() -> None:
    more = {"mean_of_sections": 0.65}
    figures = BenchmarkResult(0.643, {"math": SubsetScore(0.84, 56, 56)}, {}, more)
    found = compare_with_published(
        BENCHMARKS["judgebench"], ["Skywork-Reward-V2-Llama-3.2-1B"], figures
    )
    figure = {one.metric: one.ours for one in found}
    assert figure["mean_of_sections"] == 0.65
    assert figure["math"] == 0.84
    assert "overall" not in figure


def test_difficulties_and_halves_of_rmb() -> None:
    figures = BenchmarkResult(0.8, {}, {}, {"difficulty": {"easy": 0.9}})
    assert get_complete_metric(figures, "easy") == 0.9
    halves = {
        "best-of-n/helpfulness": SubsetScore(0.6, 2109, 2109),
        "best-of-n/harmlessness": SubsetScore(0.7, 1677, 1677),
    }
    assert get_complete_metric(
        BenchmarkResult(None, halves, {}, {}, ("x",)), "best-of-n"
    ) == pytest.approx(0.65)
    halves["best-of-n/harmlessness"] = SubsetScore(0.7, 3, 1677)
    assert get_complete_metric(BenchmarkResult(None, halves, {}, {}, ("x",)), "best-of-n") is None


def test_every_published_figure_has_a_name_of_ours() -> None:
    """Else it would be compared with nothing for ever."""
    known = {
        "rewardbench": {"overall", "Chat", "Chat Hard", "Safety", "Reasoning"},
        "rewardbench2": {
            "overall", "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties",
        },
        "rm-bench": {"overall", "easy", "normal", "hard", "chat", "math", "code", "safety"},
        "rmb": {"overall", "best-of-n"}
        | {f"{kind}/{goal}" for kind in ("pairwise", "best-of-n")
           for goal in ("helpfulness", "harmlessness")},
        "judgebench": {
            "overall", "mean_of_sections", "knowledge", "reasoning", "math", "coding",
        },
        "ppe-preference": {"overall"},
        "ppe-correctness": {"overall"},
    }  # fmt: skip
    assert set(known) == set(BENCHMARKS)
    for name, allowed in known.items():
        rows = list(iter_published_rows(name))
        assert len(rows) >= 10
        for row in rows:
            assert set(row.metrics) <= allowed, row


def local(folder: Path, benchmark: str, model: str, overall: float, **more: Any) -> Path:
    folder.mkdir(parents=True)
    summary = {
        "benchmark": benchmark, "model": model, "num_items": 3, "overall": overall,
        "sections": {}, "subsets": {}, "missing": [], "failed": [], **more,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_board_with_local_results_sorted_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = local(tmp_path / "a", "rewardbench", "mine", 0.94, sections={"Chat": 0.99})
    part = local(tmp_path / "b", "rewardbench", "half", 0.999, missing=["subset x: none of 3"])
    places = build_leaderboard("rewardbench", [ours, part])
    # The twelve rows of the boards, and one for each source that has single sections alone.
    values = [place.figures.get("overall") for place in places if not place.missing]
    with_value = [value for value in values if value is not None]
    assert values[: len(with_value)] == sorted(with_value, reverse=True)
    at = [place.model for place in places].index("mine")
    assert places[at - 1].figures["overall"] >= 0.94 >= places[at + 1].figures["overall"]
    assert places[-1].model == "half"
    assert {"Skywork/Skywork-Critic-Llama-3.1-70B", "Skywork/Skywork-VL-Reward-7B"} <= {
        place.model for place in places
    }
    print_leaderboard("RewardBench", "rewardbench", places)
    shown = capsys.readouterr().out
    assert "> mine" in shown
    assert "> half (partial)" in shown
    assert "half (partial): subset x: none of 3" in shown


def test_two_results_of_one_model_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [local(Path(name), "ppe-preference", "mine", 0.5) for name in ("left", "right")]
    print_leaderboard("PPE", "ppe-preference", build_leaderboard("ppe-preference", folders))
    shown = capsys.readouterr().out
    assert "left" in shown
    assert "right" in shown


def test_a_board_of_judgebench_goes_by_the_mean(tmp_path: Path) -> None:
    ours = local(tmp_path / "a", "judgebench", "mine", 0.99, mean_of_sections=0.7)
    places = build_leaderboard("judgebench", [tmp_path])
    values = [place.figures["mean_of_sections"] for place in places]
    assert values == sorted(values, reverse=True)
    assert str(ours) in {place.folder for place in places}


def test_a_folder_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    folder = local(tmp_path / "a", "rmb", "mine", 0.7)
    with pytest.raises(EvaluationError, match="of rmb, not of judgebench"):
        build_leaderboard("judgebench", [folder])
    (folder / "summary.json").write_text('{"benchmark": "rmb"}')
    with pytest.raises(EvaluationError, match="has no model, num_items"):
        build_leaderboard("rmb", [folder])
    with pytest.raises(EvaluationError, match=r"nothing/summary\.json|nothing cannot be read"):
        build_leaderboard("rmb", [tmp_path / "nothing"])
