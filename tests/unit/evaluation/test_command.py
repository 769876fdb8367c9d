"""`skyreward eval` with known rewards: its files, resuming, partial results, several models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from job_runs import FakeExecutor

from rm_core import BenchmarkDataError
from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import build_benchmark
from serve.errors import EvaluationError, JobRefusedError, ScoreFileError
from serve.evaluation.result import Evaluation
from serve.evaluation.runner import read_items

Evaluate = Callable[..., tuple[int, list[str]]]


def read_summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", list(benchmark_files.EVERY))
def test_evaluation_writes_complete_summary(name: str, evaluate: Evaluate, tmp_path: Path) -> None:
    """The stored items and rewards, and the file of rewards, give the same results again."""
    code, lines = evaluate(name)
    assert code == 0
    out = tmp_path / "out"
    summary = read_summary(out)
    benchmark = build_benchmark(name)
    items = read_items(out / "items.jsonl")
    rewards = {
        (line["id"], line["subset"]): line["rewards"] for line in read_lines(out / "scores.jsonl")
    }
    result = benchmark.compute_result([ScoredItem(item, rewards[item.key]) for item in items])
    assert (summary["benchmark"], summary["model"]) == (name, "fake")
    assert summary["num_items"] == len(items) == len(rewards)
    assert summary["overall"] == result.overall
    assert summary["sections"] == {key: section.score for key, section in result.sections.items()}
    assert summary["subsets"] == {key: subset.score for key, subset in result.subsets.items()}
    assert summary["missing"] == list(result.missing)
    for key, value in result.extra.items():
        assert summary[key] == json.loads(json.dumps(value))
    # A few rows are never a complete benchmark, except of one's own data.
    is_partial = name != "best-of-n"
    assert summary["partial"] == is_partial
    assert any("partial result" in line for line in lines) == is_partial
    assert ("**Partial result.**" in (out / "summary.md").read_text()) == is_partial
    before = (out / "summary.json").read_bytes()
    assert evaluate(name, scores=out / "scores.jsonl")[0] == 0
    assert (out / "summary.json").read_bytes() == before


def test_equal_rewards_give_equal_bytes_in_any_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = {"filtered.parquet": benchmark_files.rewardbench()}
    evaluate()
    evaluate(output="another/folder", data=benchmark_files.write(tmp_path / "other", rows))
    for name in ("summary.json", "scores.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "another" / "folder" / name
        ).read_bytes()
    text = (tmp_path / "out" / "summary.json").read_text()
    assert str(tmp_path) not in text


def test_summary_records_provenance(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(options={"xstest": "swapped"}, truncation="right")
    used = read_summary(tmp_path / "out")["used"]
    assert used["xstest"] == "swapped"
    assert used["prior_sets"] == "off"
    assert used["ties"] == "wrong"
    assert used["truncation"] == "right"
    assert (used["dtype"], used["attention"], used["revision"]) == ("float32", "sdpa", "r1")
    # Some of the executor's rewards are of truncated conversations.
    assert (used["num_truncated"] > 0) == ("max_length" in used)
    evaluate(output="official")
    assert read_summary(tmp_path / "official")["used"]["truncation"] == "left"


def test_second_run_scores_nothing(
    evaluate: Evaluate, executors: list[FakeExecutor], tmp_path: Path
) -> None:
    evaluate()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("s*")}
    unused = FakeExecutor()
    executors.append(unused)
    code, lines = evaluate()
    assert code == 0
    assert not unused.calls
    assert not unused.num_asked
    assert any("is complete already" in line for line in lines)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("s*")} == before


def test_failed_run_resumes_after_last_chunk(
    evaluate: Evaluate, executors: list[FakeExecutor], tmp_path: Path
) -> None:
    rows = benchmark_files.rewardbench(300)
    data = benchmark_files.write(tmp_path / "many", {"filtered.jsonl": rows})
    evaluate(data=data, output="uninterrupted")
    broken, second = FakeExecutor(fail_at=2), FakeExecutor()
    executors += [broken, second]
    with pytest.raises(RuntimeError, match="the executor failed"):
        evaluate(data=data)
    assert not (tmp_path / "out" / "summary.json").exists()
    code, lines = evaluate(data=data)
    assert code == 0
    assert any("resuming at row" in line for line in lines)
    scored = sum(len(call) for call in second.calls)
    assert 0 < scored < 600
    for name in ("summary.json", "scores.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "uninterrupted" / name
        ).read_bytes()


def test_changed_data_or_truncation_is_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    with pytest.raises(JobRefusedError, match="truncation"):
        evaluate(truncation="error")
    other = {"filtered.jsonl": benchmark_files.rewardbench(5, seed=1)}
    data = benchmark_files.write(tmp_path / "other", other)
    before = (tmp_path / "out" / "items.jsonl").read_bytes()
    with pytest.raises(EvaluationError, match="an evaluation of other items"):
        evaluate(data=data)
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == before
    assert evaluate(data=data, overwrite=True)[0] == 0
    assert read_summary(tmp_path / "out")["num_items"] == 5


def test_failed_item_is_reported_and_excluded(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = benchmark_files.rewardbench()
    rows[4]["prompt"] = "HUGE"
    data = benchmark_files.write(tmp_path / "huge", {"filtered.jsonl": rows})
    code, lines = evaluate(data=data)
    assert code == 3
    summary = read_summary(tmp_path / "out")
    assert summary["failed"] == [{"id": "4", "subset": "hep-rust", "code": "conversation_too_long"}]
    assert summary["num_items"] == 11
    assert summary["partial"]
    assert summary["used"]["max_length"] == 100
    expected = "not scored: item '4' of 'hep-rust': `responses[0]`: too long"
    assert any(expected in line for line in lines)
    assert "1 items could not be scored" in (tmp_path / "out" / "summary.md").read_text()


def test_several_models_get_a_folder_each(
    evaluate: Evaluate,
    executors: list[FakeExecutor],
    reports: dict[Path, Sequence[Evaluation]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = FakeExecutor(), FakeExecutor()
    executors += [first, second]
    assert evaluate(models=("one=demo", "some/two=demo"))[0] == 0
    for name in ("one", "two"):
        assert read_summary(tmp_path / "out" / name)["num_items"] == 12
        assert len(reports[tmp_path / "out" / name / "report.html"]) == 1
    assert sum(len(call) for call in first.calls) == sum(len(call) for call in second.calls) == 24
    assert len(reports[tmp_path / "out" / "report.html"]) == 2
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "Chat Hard" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="two models have the name 'one'"):
        evaluate(models=("one=demo", "one=demo"))


def test_incomplete_score_file_is_partial(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    kept = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()[:5]
    half = tmp_path / "another-tool.jsonl"
    half.write_text("\n".join(kept))
    code, _ = evaluate(scores=half, output="half")
    assert code == 0
    summary = read_summary(tmp_path / "half")
    assert (summary["num_items"], summary["partial"], summary["model"]) == (5, True, "another-tool")
    assert "dtype" not in summary["used"]
    assert summary["counts"]["subsets"]["math-prm"]["num_items"] == 1


@pytest.mark.parametrize("threshold", ["gsm8k", "0.5"])
def test_result_without_overall_score_shows_subsets_and_reason(
    threshold: str, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in benchmark_files.processbench()["gsm8k.json"] if row["label"] >= 0]
    data = benchmark_files.write(tmp_path / "wrong", {"gsm8k.json": rows})
    _, lines = evaluate("processbench", data=data, options={"threshold": threshold})
    missing = read_summary(tmp_path / "out")["missing"]
    assert lines[-5:-1] == [
        *(f"missing: {phrase}" for phrase in missing[:3]),
        f"missing: {len(missing) - 3} more",
    ]
    assert "solutions with" in missing[0]
    shown = capsys.readouterr().out
    assert ("GSM8K/error" in shown) == (threshold == "0.5")
    card = (tmp_path / "out" / "summary.md").read_text()
    assert ("| GSM8K/error |" in card) == (threshold == "0.5")


def test_errors_create_no_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "0", "rewards": [1, NaN]}\n')
    with pytest.raises(ScoreFileError, match="line 1"):
        evaluate(scores=bad)
    rows = {"filtered.jsonl": [{"id": 1, "prompt": "2+2?"}]}
    with pytest.raises(BenchmarkDataError, match="column `subset` is missing"):
        evaluate(data=benchmark_files.write(tmp_path / "wrong", rows))
    assert not (tmp_path / "out").exists()


def test_complete_judgebench_is_not_partial(evaluate: Evaluate, tmp_path: Path) -> None:
    """Its model is compared with the published results of the catalogue."""
    counts = {"mmlu-pro-x": 154, "livebench-reasoning": 98, "livebench-math": 56}
    sources = [s for s, n in {**counts, "livecodebench": 42}.items() for _ in range(n)]
    rows = [
        {**row, "source": source}
        for row, source in zip(benchmark_files.judgebench(350), sources, strict=True)
    ]
    data = benchmark_files.write(tmp_path / "whole", {"gpt.jsonl": rows})
    scores = tmp_path / "scores.jsonl"
    scores.write_text(
        benchmark_files.lines(
            {"id": row["pair_id"], "rewards": [int(row["label"] == "A>B"), 0]} for row in rows
        )
    )
    code, lines = evaluate(
        "judgebench", data=data, scores=scores, model_name="Skywork/Skywork-Reward-V2-Qwen3-4B"
    )
    summary = read_summary(tmp_path / "out")
    assert code == 0
    assert not summary["partial"]
    assert (summary["overall"], summary["mean_of_sections"]) == (1.0, 1.0)
    assert not any("partial" in line for line in lines)
    card = (tmp_path / "out" / "summary.md").read_text()
    assert "| mean_of_sections | 69.3 | 100.0 |" in card
    assert "| coding | 66.7 | 100.0 |" in card
    assert "the paper's table by category has 69.5".replace("the", "The", 1) in card
