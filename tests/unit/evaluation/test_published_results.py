"""Comparison of local with published results, and leaderboards of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rm_core.benchmarks import prmbench, processbench
from rm_core.benchmarks.base import BenchmarkResult, SubsetScore
from rm_core.benchmarks.plan_rewardbench import SPLITS
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.rewardbench import SECTIONS
from rm_core.benchmarks.vl_rewardbench import GROUPS
from serve.errors import EvaluationError
from serve.evaluation.console import print_leaderboard
from serve.evaluation.leaderboard import build_leaderboard
from serve.evaluation.published_results import (
    compare_with_published,
    get_complete_metric,
    iter_published_rows,
)

_NUM_ROWS = {
    "processbench": 4,
    "prmbench": 4,
    "best-of-n": 0,
    "vl-rewardbench": 6,
    "rewardmath": 9,
    "plan-rewardbench": 7,
    "m-rewardbench": 0,
}
GEMMA = "Skywork/Skywork-Reward-Gemma-2-27B"


def build_rewardbench_result(overall: float, missing: tuple[str, ...] = ()) -> BenchmarkResult:
    sections = {
        "Chat": SubsetScore(0.95, 358, 358),
        "Chat Hard": SubsetScore(0.9, 400, 456),
        "Safety": SubsetScore(0.92, 740, 740),
        "Reasoning": SubsetScore(0.97, 1431, 1431),
    }
    return BenchmarkResult(overall, sections, {}, {}, missing)


def test_published_runs_of_v02_and_their_notes() -> None:
    result = build_rewardbench_result(0.935)
    comparisons = compare_with_published(BENCHMARKS["rewardbench"], ["x", GEMMA + "-v0.2"], result)
    overall = [one for one in comparisons if one.metric == "overall"]
    assert [one.published for one in overall] == pytest.approx([0.943, 0.944, 0.943])
    assert {one.ours for one in overall} == {0.935}
    assert "Run shown on the model card." in overall[0].note
    assert "Two RewardBench runs are published" in overall[0].note
    assert "README" in overall[1].source


def test_xstest_correction_is_a_known_reason() -> None:
    result = build_rewardbench_result(0.9)
    comparisons = compare_with_published(BENCHMARKS["rewardbench"], [GEMMA], result)
    assert any("swapped until 10 September 2024" in one.note for one in comparisons)
    notes = {round(one.published, 3): one.note for one in comparisons if one.metric == "Safety"}
    assert "With the corrected XSTest counts." in notes[0.919]
    assert "With the two XSTest counts swapped." in notes[0.92]


def test_float16_is_a_known_reason_only_for_rewardbench2() -> None:
    name = ["Skywork/Skywork-Reward-V2-Qwen3-8B"]
    empty = BenchmarkResult(None, {}, {}, {}, ("all",))
    second = compare_with_published(BENCHMARKS["rewardbench2"], name, empty)
    assert any("in float16" in one.note for one in second)
    first = compare_with_published(BENCHMARKS["rewardbench"], name, empty)
    assert first
    assert not any("in float16" in one.note for one in first)
    assert {one.ours for one in (*first, *second)} == {None}


def test_unknown_checkpoint_has_no_comparisons() -> None:
    result = build_rewardbench_result(0.9)
    names = ["demo", "some/other"]
    assert compare_with_published(BENCHMARKS["rewardbench"], names, result) == ()


def test_partial_metric_is_not_compared() -> None:
    partial = build_rewardbench_result(0.935, ("subset llmbar-natural: has 44 of 100 items",))
    assert get_complete_metric(partial, "overall") is None
    assert get_complete_metric(partial, "Chat Hard") is None
    assert get_complete_metric(partial, "Chat") == 0.95
    assert get_complete_metric(partial, "Jokes") is None


def test_published_judgebench_overall_is_mean_of_sections() -> None:
    extra = {"mean_of_sections": 0.65}
    result = BenchmarkResult(0.643, {"math": SubsetScore(0.84, 56, 56)}, {}, extra)
    comparisons = compare_with_published(
        BENCHMARKS["judgebench"], ["Skywork-Reward-V2-Llama-3.2-1B"], result
    )
    metrics = {one.metric: one.ours for one in comparisons}
    assert metrics["mean_of_sections"] == 0.65
    assert metrics["math"] == 0.84
    assert "overall" not in metrics


def test_complete_metric_of_difficulty_and_best_of_n() -> None:
    result = BenchmarkResult(0.8, {}, {}, {"difficulty": {"easy": 0.9}})
    assert get_complete_metric(result, "easy") == 0.9
    sections = {
        "best-of-n/helpfulness": SubsetScore(0.6, 2109, 2109),
        "best-of-n/harmlessness": SubsetScore(0.7, 1677, 1677),
    }
    assert get_complete_metric(
        BenchmarkResult(None, sections, {}, {}, ("x",)), "best-of-n"
    ) == pytest.approx(0.65)
    sections["best-of-n/harmlessness"] = SubsetScore(0.7, 3, 1677)
    assert get_complete_metric(BenchmarkResult(None, sections, {}, {}, ("x",)), "best-of-n") is None


def test_every_published_metric_has_a_local_name() -> None:
    """Otherwise the metric would never be compared."""
    known = {
        "rewardbench": {"overall", "Chat", "Chat Hard", "Safety", "Reasoning"}
        | {subset for subsets in SECTIONS.values() for subset in subsets},
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
        "processbench": {"overall", *processbench.TITLES.values(), *processbench.COUNTS},
        "prmbench": {"overall", *prmbench.CATEGORIES, *prmbench.CLASSES},
        "best-of-n": set(),
        "vl-rewardbench": {"overall", "mean_of_sections", *GROUPS},
        "rewardmath": {"overall", "pairs", "mrr"},
        "plan-rewardbench": {"overall", *SPLITS},
        "m-rewardbench": set(),
    }  # fmt: skip
    assert set(known) == set(BENCHMARKS)
    for name, allowed in known.items():
        rows = list(iter_published_rows(name))
        assert len(rows) >= _NUM_ROWS.get(name, 10)
        for row in rows:
            assert set(row.metrics) <= allowed, row


def write_summary(folder: Path, benchmark: str, model: str, overall: float, **more: Any) -> Path:
    folder.mkdir(parents=True)
    summary = {
        "benchmark": benchmark, "model": model, "num_items": 3, "overall": overall,
        "sections": {}, "subsets": {}, "missing": [], "failed": [], **more,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_leaderboard_sorts_in_local_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_summary(tmp_path / "a", "rewardbench", "mine", 0.94, sections={"Chat": 0.99})
    partial = write_summary(
        tmp_path / "b", "rewardbench", "half", 0.999, missing=["subset x: none of 3"]
    )
    rows = build_leaderboard("rewardbench", [ours, partial])
    # The twelve rows of the leaderboards, and rows of sources that publish only single sections.
    values = [row.figures.get("overall") for row in rows if not row.missing]
    with_value = [value for value in values if value is not None]
    assert values[: len(with_value)] == sorted(with_value, reverse=True)
    index = [row.model for row in rows].index("mine")
    assert rows[index - 1].figures["overall"] >= 0.94 >= rows[index + 1].figures["overall"]
    assert rows[-1].model == "half"
    assert {"Skywork/Skywork-Critic-Llama-3.1-70B", "Skywork/Skywork-VL-Reward-7B"} <= {
        row.model for row in rows
    }
    print_leaderboard("rewardbench", rows)
    printed = capsys.readouterr().out
    assert "> mine" in printed
    assert "> half (partial)" in printed
    assert "half (partial): subset x: none of 3" in printed


def test_leaderboard_shows_folders_of_equal_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [
        write_summary(Path(name), "ppe-preference", "mine", 0.5) for name in ("left", "right")
    ]
    print_leaderboard("ppe-preference", build_leaderboard("ppe-preference", folders))
    printed = capsys.readouterr().out
    assert "left" in printed
    assert "right" in printed


def test_judgebench_leaderboard_is_sorted_by_mean(tmp_path: Path) -> None:
    ours = write_summary(tmp_path / "a", "judgebench", "mine", 0.99, mean_of_sections=0.7)
    rows = build_leaderboard("judgebench", [tmp_path])
    values = [row.figures["mean_of_sections"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert str(ours) in {row.folder for row in rows}


def test_leaderboard_refuses_other_benchmark(tmp_path: Path) -> None:
    folder = write_summary(tmp_path / "a", "rmb", "mine", 0.7)
    with pytest.raises(EvaluationError, match="of rmb, not of judgebench"):
        build_leaderboard("judgebench", [folder])
    (folder / "summary.json").write_text('{"benchmark": "rmb"}')
    with pytest.raises(EvaluationError, match="has no model, num_items"):
        build_leaderboard("rmb", [folder])
    with pytest.raises(EvaluationError, match=r"nothing has no summary\.json"):
        build_leaderboard("rmb", [tmp_path / "nothing"])
