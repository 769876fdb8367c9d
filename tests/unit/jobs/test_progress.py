"""Progress, summary table and estimate of a job, as the user sees them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from job_runs import FakeExecutor, records, run_job, write_lines

from serve.jobs.dry_run import estimate
from serve.jobs.inputs.source import open_source
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.spec import JobSpec
from serve.jobs.summary import Summary, format_duration, format_summary, print_lines
from serve.shutdown import GracefulShutdown


def test_progress_prints_lines_without_terminal() -> None:
    lines_shown: list[str] = []
    with Progress(lines_shown.append, on_terminal=False, line_every_s=0) as progress:
        progress.start_phase("scoring", total=200, completed=100)
        progress.add(Summary(num_rows=50, num_tokens=1_000))
        progress.tick()
    assert lines_shown[0].startswith("scoring: 75%, 150 rows, ")
    assert "tokens/s" in lines_shown[0]
    assert lines_shown[0].endswith(" left")


def test_progress_prints_few_lines_by_default() -> None:
    lines_shown: list[str] = []
    with Progress(lines_shown.append, on_terminal=False) as progress:
        progress.start_phase("scoring", total=200)
        for _ in range(200):
            progress.advance(1)
    assert lines_shown == []


def test_progress_shows_bar_on_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines_shown: list[str] = []
    with Progress(lines_shown.append, on_terminal=True) as progress:
        progress.start_phase("scoring", total=200)
        progress.add(Summary(num_rows=200, num_tokens=1_000))
        progress.start_phase("writing", total=200)
    assert lines_shown == []
    assert "writing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.7, "1:00"), (125, "2:05"), (3_725, "1:02:05")]
)
def test_format_duration(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_summary_table(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(10, Counter({"too_long": 2}), 15, 1_000, 200, 500, seconds=2.0)
    lines = dict(format_summary(summary))
    assert lines["scored"] == "8"
    assert lines["  too_long"] == "2"
    assert lines["not computed"] == "500 (50.0%)"
    assert lines["  repeated conversations"] == "200 (20.0%)"
    assert lines["  shared prefixes"] == "300 (30.0%)"
    assert lines["tokens/s"] == "500"
    print_lines(format_summary(summary))
    assert "500 (50.0%)" in capsys.readouterr().err
    assert Summary.from_json(json.loads(json.dumps(summary.as_json()))) == summary


def test_summary_counts_rewards_from_a_cache_apart() -> None:
    summary, chunk = Summary(num_tokens=100), Summary(num_tokens=900, num_cached_tokens=700)
    summary.add(chunk)
    summary.num_computed_tokens = 250
    lines = dict(format_summary(summary))
    assert lines["not computed"] == "750 (75.0%)"
    assert lines["  in the service's cache"] == "700 (70.0%)"
    assert lines["  shared prefixes"] == "50 (5.0%)"
    assert "  in the service's cache" not in dict(format_summary(Summary(num_tokens=1)))


def test_dry_run_counts_what_job_counts(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", records(95))
    spec = JobSpec(open_source(str(source)), Output.parse(tmp_path / "out.jsonl"), chunk_rows=10)
    executor = FakeExecutor(delay_s=0.01)
    with Progress(lambda line: None, on_terminal=False) as progress:
        dry_run = estimate(spec, executor, progress, GracefulShutdown(""))
    executor.close()
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]
    assert len(executor.calls) == 2
    summary = run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    assert dry_run.summary.num_rows == summary.num_rows
    assert dry_run.tokens_per_s > 0
    lines = dict(dry_run.format_lines())
    assert lines["rows"] == "95"
    assert "estimated time" in lines
    # The executor finds some conversations too long only when it scores them.
    assert dry_run.summary.errors["invalid_conversation"] == summary.errors["invalid_conversation"]
