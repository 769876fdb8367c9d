"""`skyreward eval` as a process: by a model here and by a service, interrupted, on real rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from conftest import SHARED_DATA
from waiting import PATIENCE_S

from serve.cli.demo import run_service

# The tokenizer of small models takes a letter as a token: some answers are too long, both ways.
LENGTH = 1024
RM_BENCH, RMB = SHARED_DATA / "rm-bench", SHARED_DATA / "rmb"
NEEDS_ROWS = pytest.mark.skipif(
    not (RM_BENCH.is_dir() and RMB.is_dir()), reason="the published files are missing"
)


@pytest.fixture(scope="module")
def local_service(checkpoint_folder: Path) -> Iterator[str]:
    """A service without Ray, with the longest length of the official runs."""
    config = checkpoint_folder / "eval.yaml"
    model = {"name": str(checkpoint_folder / "qwen3"), "alias": "tiny", "max_length": LENGTH}
    config.write_text(json.dumps({"models": [model], "log_level": "WARNING"}))
    with run_service("--local", "--config", str(config)) as url:
        yield url


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "serve.cli.main", "eval", *map(str, arguments)]


def evaluated(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in codes, done.stderr
    return done.stderr


def shortest(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """Rows of a published file whose texts fit into a small model."""
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return sorted(found, key=lambda row: len(json.dumps(row)))[:num_rows]


def parts_of_rm_bench(folder: Path, num_rows: int) -> Path:
    rows_of = {path.name: shortest(path, num_rows) for path in RM_BENCH.glob("*.json")}
    return benchmark_files.write(folder, rows_of)


def parts_of_rmb(folder: Path, num_rows: int) -> Path:
    files = sorted(RMB.glob("BoN_set/**/*.json"))[:3]
    rows_of = {path.relative_to(RMB).as_posix(): shortest(path, num_rows) for path in files}
    return benchmark_files.write(folder, rows_of)


@NEEDS_ROWS
@pytest.mark.parametrize("benchmark", ["rm-bench", "rmb"])
def test_here_and_by_a_service_the_same(
    benchmark: str, local_service: str, checkpoint_folder: Path, tmp_path: Path
) -> None:
    """Also what could not be scored."""
    make = parts_of_rm_bench if benchmark == "rm-bench" else parts_of_rmb
    data = ("--data", make(tmp_path / "data", 2))
    model = f"tiny={checkpoint_folder / 'qwen3'}"
    here, there = tmp_path / "here", tmp_path / "there"
    told = evaluated(
        benchmark, *data, "--model", model, "--max-length", LENGTH, "-o", here, codes=(0, 3)
    )
    assert "a partial result" in told
    evaluated(benchmark, *data, "--url", local_service, "-o", there, codes=(0, 3))
    assert (here / "summary.json").read_bytes() == (there / "summary.json").read_bytes()
    summary = json.loads((here / "summary.json").read_text())
    assert summary["model"] == "tiny"
    assert summary["used"]["truncation"] == "left"
    for folder in (here, there):
        page = (folder / "report.html").read_text()
        assert page.count("<svg") >= 4
    pairs = [
        (one["rewards"], other["rewards"])
        for one, other in zip(rows(here), rows(there), strict=True)
    ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=1e-4)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_a_service_with_another_length_is_told(local_service: str, tmp_path: Path) -> None:
    rows_of = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_of)
    told = evaluated("rewardbench", "--data", data, "--url", local_service, "-o", tmp_path / "out")
    assert f"takes at most {LENGTH} tokens" in told
    assert "2048" in told


def test_stopped_and_gone_on_with(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C keeps what is scored; the same command gives what an undisturbed one gives."""
    many = benchmark_files.rewardbench(400)
    for row in many:
        row["prompt"] *= 5
    data = benchmark_files.write(tmp_path / "data", {"filtered.jsonl": many})
    how = ("rewardbench", "--data", data, "--model", checkpoint_folder / "qwen3")
    evaluated(*how, "-o", tmp_path / "whole")
    process = subprocess.Popen(
        command(*how, "-o", tmp_path / "out"), stderr=subprocess.PIPE, text=True
    )
    chunks = tmp_path / "out" / "rewards.jsonl.job" / "chunks"
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not list(chunks.glob("*.gz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, told
    assert "run the same command again to go on" in told
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "resuming after row" in evaluated(*how, "-o", tmp_path / "out")
    for name in ("summary.json", "scores.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_several_models_in_one_call(checkpoint_folder: Path, tmp_path: Path) -> None:
    rows_of = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_of)
    out = tmp_path / "out"
    models = [f"{name}={checkpoint_folder / spec}" for name, spec in
              (("a", "qwen3"), ("b", "llama-v0.1"))]  # fmt: skip
    evaluated("rewardbench", "--data", data, "--model", models[0], "--model", models[1], "-o", out)
    assert {path.name for path in out.iterdir()} == {"a", "b", "items.jsonl", "report.html"}
    page = (out / "report.html").read_text()
    assert ">a<" in page
    assert ">b<" in page
    done = subprocess.run(
        [sys.executable, "-m", "serve.cli.main", "compare-runs", out / "a", out / "b"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "McNemar" in done.stdout
