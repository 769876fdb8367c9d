"""`skyreward calibrate`: over any input of a job, resumed, on a local model and on a service."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, records, run_job, write_lines

from rm_core.calibration import read_calibration
from serve.errors import JobInputError, JobOutputError, JobRefusedError
from serve.jobs.calibrate import run_calibration
from serve.jobs.command import ExecutorOptions


def calibrate(
    source: Path, output: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> int:
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: executor)
    return run_calibration(
        str(source),
        output,
        ExecutorOptions({"model": "fake"}),
        notify=lambda line: None,
        split=None,
        columns={},
        chunk_rows=10,
        **more,
    )


def test_own_input_has_mean_0_and_deviation_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", records(300))
    # Some rows have errors.
    assert calibrate(source, tmp_path / "c.json", FakeExecutor(), monkeypatch) == 3
    calibration = read_calibration(str(tmp_path / "c.json"))
    assert (calibration.model, calibration.fingerprint.revision) == ("fake", "r1")
    assert f"{calibration.count:,}" in capsys.readouterr().err
    run_job(source, tmp_path / "scored.jsonl", FakeExecutor())
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    names = ("reward", "chosen_reward", "rejected_reward", "rewards")
    found = [row[name] for row in rows for name in names if row.get(name) is not None]
    rewards = [r for one in found for r in (one if isinstance(one, list) else [one])]
    calibrated = [calibration.apply(reward) for reward in rewards if reward is not None]
    assert len(calibrated) == calibration.count
    assert abs(statistics.fmean(calibrated)) < 1e-6
    assert abs(statistics.pstdev(calibrated) - 1) < 1e-6


def test_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "in.jsonl", records(100))
    with pytest.raises(RuntimeError, match="the executor failed"):
        calibrate(source, tmp_path / "c.json", FakeExecutor(fail_at=5), monkeypatch)
    assert not (tmp_path / "c.json").exists()
    rest, whole = FakeExecutor(), FakeExecutor()
    calibrate(source, tmp_path / "c.json", rest, monkeypatch)
    calibrate(source, tmp_path / "whole.json", whole, monkeypatch)
    assert len(rest.calls) < len(whole.calls)
    assert (tmp_path / "c.json").read_text() == (tmp_path / "whole.json").read_text()
    # Nothing is left to score.
    again = FakeExecutor()
    calibrate(source, tmp_path / "c.json", again, monkeypatch)
    assert not again.calls


def test_refused_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = write_lines(tmp_path / "in.jsonl", [{"prompt": "2+2?", "response": "4"}] * 3)
    with pytest.raises(JobInputError, match=r"deviation of 3 reward\(s\) is 0"):
        calibrate(same, tmp_path / "c.json", FakeExecutor(), monkeypatch)
    judge = FakeExecutor()
    judge.model["kind"] = "judge"
    with pytest.raises(JobInputError, match="the model is a judge"):
        calibrate(same, tmp_path / "judge.json", judge, monkeypatch)
    with pytest.raises(JobOutputError, match=r"does not end in \.json"):
        calibrate(same, tmp_path / "c.txt", FakeExecutor(), monkeypatch)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(JobRefusedError, match="no job is known to have written it"):
        calibrate(same, tmp_path / "other.json", FakeExecutor(), monkeypatch)
