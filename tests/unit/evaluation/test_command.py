"""`skyreward eval` with rewards that are known: its files, going on, partial results, models."""

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


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", list(benchmark_files.EVERY))
def test_every_benchmark(name: str, evaluate: Evaluate, tmp_path: Path) -> None:
    """Also: the figures of what was kept are the same, and so are those of the file of rewards."""
    code, told = evaluate(name)
    assert code == 0
    out = tmp_path / "out"
    found = summary(out)
    made = build_benchmark(name)
    items = read_items(out / "items.jsonl")
    rewards = {
        (line["id"], line["subset"]): line["rewards"] for line in lines(out / "scores.jsonl")
    }
    figures = made.compute_result([ScoredItem(item, rewards[item.key]) for item in items])
    assert (found["benchmark"], found["model"]) == (name, "fake")
    assert found["num_items"] == len(items) == len(rewards)
    assert found["overall"] == figures.overall
    assert found["sections"] == {key: part.score for key, part in figures.sections.items()}
    assert found["subsets"] == {key: part.score for key, part in figures.subsets.items()}
    assert found["missing"] == list(figures.missing)
    for key, value in figures.extra.items():
        assert found[key] == json.loads(json.dumps(value))
    # A few rows are never a whole benchmark.
    assert found["partial"]
    assert any("partial result" in text for text in told)
    assert "**Partial result.**" in (out / "summary.md").read_text()
    before = (out / "summary.json").read_bytes()
    assert evaluate(name, scores=out / "scores.jsonl")[0] == 0
    assert (out / "summary.json").read_bytes() == before


def test_the_same_rewards_give_the_same_bytes_wherever(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = {"filtered.parquet": benchmark_files.rewardbench()}
    evaluate()
    evaluate(output="else/where", data=benchmark_files.write(tmp_path / "other", rows))
    for name in ("summary.json", "scores.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "else" / "where" / name
        ).read_bytes()
    text = (tmp_path / "out" / "summary.json").read_text()
    assert str(tmp_path) not in text


def test_what_was_used_is_told(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(options={"xstest": "swapped"}, truncation="right")
    used = summary(tmp_path / "out")["used"]
    assert used["xstest"] == "swapped"
    assert used["prior_sets"] == "off"
    assert used["ties"] == "wrong"
    assert used["truncation"] == "right"
    assert (used["dtype"], used["attention"], used["revision"]) == ("float32", "sdpa", "r1")
    # Some of the rewards of the carrier are of conversations that were cut.
    assert (used["num_truncated"] > 0) == ("max_length" in used)
    evaluate(output="official")
    assert summary(tmp_path / "official")["used"]["truncation"] == "left"


def test_a_second_run_scores_nothing(
    evaluate: Evaluate, carriers: list[FakeExecutor], tmp_path: Path
) -> None:
    evaluate()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("s*")}
    again = FakeExecutor()
    carriers.append(again)
    code, told = evaluate()
    assert code == 0
    assert not again.calls
    assert not again.num_asked
    assert any("is complete already" in text for text in told)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("s*")} == before


def test_goes_on_where_it_ended(
    evaluate: Evaluate, carriers: list[FakeExecutor], tmp_path: Path
) -> None:
    rows = benchmark_files.rewardbench(300)
    data = benchmark_files.write(tmp_path / "many", {"filtered.jsonl": rows})
    evaluate(data=data, output="undisturbed")
    broken, second = FakeExecutor(fail_at=2), FakeExecutor()
    carriers += [broken, second]
    with pytest.raises(RuntimeError, match="the executor failed"):
        evaluate(data=data)
    assert not (tmp_path / "out" / "summary.json").exists()
    code, told = evaluate(data=data)
    assert code == 0
    assert any("resuming after row" in text for text in told)
    scored = sum(len(call) for call in second.calls)
    assert 0 < scored < 600
    for name in ("summary.json", "scores.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "undisturbed" / name
        ).read_bytes()


def test_other_data_or_another_truncation_is_refused(evaluate: Evaluate, tmp_path: Path) -> None:
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
    assert summary(tmp_path / "out")["num_items"] == 5


def test_an_item_that_cannot_be_scored_is_told_and_left_out(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    rows = benchmark_files.rewardbench()
    rows[4]["prompt"] = "HUGE"
    data = benchmark_files.write(tmp_path / "huge", {"filtered.jsonl": rows})
    code, told = evaluate(data=data)
    assert code == 3
    found = summary(tmp_path / "out")
    assert found["failed"] == [{"id": "4", "subset": "hep-rust", "code": "conversation_too_long"}]
    assert found["num_items"] == 11
    assert found["partial"]
    assert found["used"]["max_length"] == 100
    where = "not scored: item '4' of 'hep-rust': `responses[0]`: too long"
    assert any(where in text for text in told)
    assert "1 items could not be scored" in (tmp_path / "out" / "summary.md").read_text()


def test_several_models_each_in_a_folder(
    evaluate: Evaluate,
    carriers: list[FakeExecutor],
    reports: dict[Path, Sequence[Evaluation]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = FakeExecutor(), FakeExecutor()
    carriers += [first, second]
    assert evaluate(models=("one=demo", "some/two=demo"))[0] == 0
    for name in ("one", "two"):
        assert summary(tmp_path / "out" / name)["num_items"] == 12
        assert len(reports[tmp_path / "out" / name / "report.html"]) == 1
    assert sum(len(call) for call in first.calls) == sum(len(call) for call in second.calls) == 24
    assert len(reports[tmp_path / "out" / "report.html"]) == 2
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "Chat Hard" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="two models are called 'one'"):
        evaluate(models=("one=demo", "one=demo"))


def test_half_a_file_of_rewards_is_partial(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    kept = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()[:5]
    half = tmp_path / "another-tool.jsonl"
    half.write_text("\n".join(kept))
    code, _ = evaluate(scores=half, output="half")
    assert code == 0
    found = summary(tmp_path / "half")
    assert (found["num_items"], found["partial"], found["model"]) == (5, True, "another-tool")
    assert "dtype" not in found["used"]
    assert found["counts"]["subsets"]["math-prm"]["num_items"] == 1


def test_errors_leave_no_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "0", "rewards": [1, NaN]}\n')
    with pytest.raises(ScoreFileError, match="line 1"):
        evaluate(scores=bad)
    rows = {"filtered.jsonl": [{"id": 1, "prompt": "2+2?"}]}
    with pytest.raises(BenchmarkDataError, match="column `subset` is missing"):
        evaluate(data=benchmark_files.write(tmp_path / "wrong", rows))
    assert not (tmp_path / "out").exists()


def test_a_whole_judgebench_is_not_partial(evaluate: Evaluate, tmp_path: Path) -> None:
    """And its model is compared with what the catalogue has of it."""
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
    code, told = evaluate(
        "judgebench", data=data, scores=scores, called="Skywork/Skywork-Reward-V2-Qwen3-4B"
    )
    found = summary(tmp_path / "out")
    assert code == 0
    assert not found["partial"]
    assert (found["overall"], found["mean_of_sections"]) == (1.0, 1.0)
    assert not any("partial" in text for text in told)
    card = (tmp_path / "out" / "summary.md").read_text()
    assert "| mean_of_sections | 69.3 | 100.0 |" in card
    assert "| coding | 66.7 | 100.0 |" in card
    assert "the paper's table by category has 69.5".replace("the", "The", 1) in card
