"""`skyreward score` as a process: interrupted, killed, and in other formats."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from job_runs import records, write_lines
from peer_service import Served
from waiting import PATIENCE_S

NUM_ROWS = 1_500


def command(source: Path, output: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "serve.cli.main", "score", str(source), "-o", str(output)),
        *("--model", str(folder), "--chunk-rows", "50", *more),
    ]


def finish(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(3)
    rows: list[Any] = records(NUM_ROWS)
    for row in rows:  # so much text that a run takes a while
        if "messages" in row:
            row["messages"][0]["content"] += " " + " ".join(rng.choices("abcdefgh", k=400))
    return write_lines(tmp_path_factory.mktemp("input") / "in.jsonl", rows)


@pytest.fixture(scope="module")
def undisturbed(source: Path, checkpoint_folder: Path) -> bytes:
    output = source.with_name("whole.jsonl")
    done = finish(command(source, output, checkpoint_folder / "qwen3"))
    assert done.returncode == 3, done.stderr
    return output.read_bytes()


def interrupted(line: list[str], chunks: Path, number: int) -> tuple[int, str]:
    """Exit code and messages of a run that gets a signal once it has kept another chunk."""
    before = len(list(chunks.glob("*.gz")))
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 2 * PATIENCE_S
    while len(list(chunks.glob("*.gz"))) <= before:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=PATIENCE_S)
    return process.returncode, told


def test_stopped_killed_and_gone_on_with(
    source: Path, undisturbed: bytes, checkpoint_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    chunks = tmp_path / "out.jsonl.job" / "chunks"
    line = command(source, output, checkpoint_folder / "qwen3")
    for number, code in (
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 143),
    ):
        returncode, told = interrupted(line, chunks, number)
        assert returncode == code, told
        if number != signal.SIGKILL:
            assert "once more to end at once" in told
            assert "run the same command again to go on" in told
            assert "Traceback" not in told
        assert not output.exists()
    done = finish(line)
    assert done.returncode == 3, done.stderr
    assert "going on behind row" in done.stderr
    assert output.read_bytes() == undisturbed


def test_another_model_is_refused(
    source: Path, undisturbed: bytes, checkpoint_folder: Path, tmp_path: Path
) -> None:
    line = command(source, source.with_name("whole.jsonl"), checkpoint_folder / "llama-v0.1")
    refused = finish(line)
    assert refused.returncode == 1
    assert "begun differently: the model's revision was" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert source.with_name("whole.jsonl").read_bytes() == undisturbed


def test_a_dry_run_writes_nothing(source: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    short = write_lines(tmp_path / "in.jsonl", records(200))
    line = command(short, tmp_path / "out.jsonl", checkpoint_folder / "qwen3", "--dry-run")
    done = finish(line)
    assert done.returncode == 3, done.stderr
    assert "would take about" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_table_by_a_service(served: Served, tmp_path: Path) -> None:
    """Here and by the service, in JSON and as a table: the same rewards."""
    rows = [row for row in records(120) if "messages" in row]
    for row in rows[::3]:
        row["tools"] = [{"type": "function", "function": {"name": f"sum {row['id']}"}}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    here = finish(command(source, tmp_path / "here.jsonl", served.folders["llama"]))
    assert here.returncode == 0, here.stderr
    there = finish(
        [
            *(sys.executable, "-m", "serve.cli.main", "score", str(source)),
            *("-o", str(tmp_path / "there.parquet"), "--url", served.url, "--model", "llama"),
        ]
    )
    assert there.returncode == 0, there.stderr
    expected = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "there.parquet").to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in expected]
    for row, other in zip(table, expected, strict=True):
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert row["warnings"] == other.get("warnings")
    # The template of this checkpoint writes no functions, which both ways say.
    assert sum("template_ignores_tools" in str(row["warnings"]) for row in table) == len(rows[::3])
    counted = finish(
        [
            *(sys.executable, "-m", "serve.cli.main", "score", str(source), "--dry-run"),
            *("--url", served.url, "--model", "llama"),
        ]
    )
    assert counted.returncode == 0, counted.stderr
