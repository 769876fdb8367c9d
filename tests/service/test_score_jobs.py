"""`skyreward score`: interrupted, killed, and with other formats."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import preloaded
import pyarrow.parquet as pq
import pytest
from command_line import invoke
from job_runs import count_chunks, records, write_lines
from peer_service import Served
from waiting import PATIENCE_S

from serve.jobs import command
from serve.jobs.spec import JobSpec

NUM_ROWS = 500
CHUNK_ROWS = 20


def list_arguments(source: Path, output: Path, folder: Path, *more: object) -> list[object]:
    return ["score", source, "-o", output, "--model", folder, *more]


@pytest.fixture(scope="module", autouse=True)
def chunks_of_a_few_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "JobSpec", partial(JobSpec, chunk_rows=CHUNK_ROWS))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(3)
    rows: list[Any] = records(NUM_ROWS)
    for row in rows:  # enough text for a run to take seconds
        if "messages" in row:
            row["messages"][0]["content"] += " " + " ".join(rng.choices("abcdefgh", k=400))
    return write_lines(tmp_path_factory.mktemp("input") / "in.jsonl", rows)


@pytest.fixture(scope="module")
def uninterrupted(source: Path, served: Served) -> bytes:
    output = source.with_name("whole.jsonl")
    done = invoke(*list_arguments(source, output, served.folders["tiny"]))
    assert done.exit_code == 3, done.stderr
    return output.read_bytes()


def run_and_interrupt(arguments: list[object], output: Path, signal_number: int) -> tuple[int, str]:
    """Send a signal to a run after its next chunk; return its exit code and messages."""
    before, errors = count_chunks(output), output.with_name("errors")
    process = preloaded.start(arguments, errors, CHUNK_ROWS)
    deadline = time.monotonic() + 2 * PATIENCE_S
    while count_chunks(output) <= before:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal_number)
    return process.wait(PATIENCE_S), errors.read_text()


def test_stopped_and_killed_job_resumes(
    source: Path, uninterrupted: bytes, served: Served, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = list_arguments(source, output, served.folders["tiny"])
    for signal_number, code in (
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 143),
    ):
        returncode, errors = run_and_interrupt(arguments, output, signal_number)
        assert returncode == code, errors
        if signal_number != signal.SIGKILL:
            assert "a second signal ends the job at once" in errors
            assert "run the same command again to resume" in errors
            assert "Traceback" not in errors
        assert not output.exists()
    done = invoke(*arguments)
    assert done.exit_code == 3, done.stderr
    assert "resuming at row" in done.stderr
    assert output.read_bytes() == uninterrupted


def test_resume_with_other_model_is_refused(
    source: Path, uninterrupted: bytes, served: Served, tmp_path: Path
) -> None:
    arguments = list_arguments(source, source.with_name("whole.jsonl"), served.folders["llama"])
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "began differently: the model's revision was" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert source.with_name("whole.jsonl").read_bytes() == uninterrupted


def test_dry_run_writes_nothing(source: Path, served: Served, tmp_path: Path) -> None:
    short = write_lines(tmp_path / "in.jsonl", records(200))
    arguments = list_arguments(short, tmp_path / "out.jsonl", served.folders["tiny"], "--dry-run")
    done = invoke(*arguments)
    assert done.exit_code == 3, done.stderr
    assert "estimated time" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_service_and_local_rewards_are_equal(served: Served, tmp_path: Path) -> None:
    """Local JSONL output and Parquet output from a service have the same rewards."""
    rows = [row for row in records(120) if "messages" in row]
    for row in rows[::3]:
        row["tools"] = [{"type": "function", "function": {"name": f"sum {row['id']}"}}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    local = invoke(*list_arguments(source, tmp_path / "here.jsonl", served.folders["llama"]))
    assert local.exit_code == 0, local.stderr
    service = ("--url", served.url, "--model", "llama")
    remote = invoke("score", source, "-o", tmp_path / "there.parquet", *service)
    assert remote.exit_code == 0, remote.stderr
    expected = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "there.parquet").to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in expected]
    for row, other in zip(table, expected, strict=True):
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert row["warnings"] == other.get("warnings")
    # The template of this checkpoint ignores tools; both executors warn of that.
    assert sum("template_ignores_tools" in str(row["warnings"]) for row in table) == len(rows[::3])
    counted = invoke("score", source, "--dry-run", *service)
    assert counted.exit_code == 0, counted.stderr
