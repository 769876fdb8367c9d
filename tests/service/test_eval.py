"""`skyreward eval` as a process: with a local model, with a service, interrupted, on real rows."""

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

# The small models' tokenizer has one token per letter, so some answers are too long.
LENGTH = 1024
RM_BENCH, RMB = SHARED_DATA / "rm-bench", SHARED_DATA / "rmb"
NEEDS_ROWS = pytest.mark.skipif(
    not (RM_BENCH.is_dir() and RMB.is_dir()), reason="the published files are missing"
)


@pytest.fixture(scope="module")
def local_service(checkpoint_folder: Path) -> Iterator[str]:
    """A service without Ray whose maximum length is `LENGTH`."""
    config = checkpoint_folder / "eval.yaml"
    model = {"name": str(checkpoint_folder / "qwen3"), "alias": "tiny", "max_length": LENGTH}
    config.write_text(json.dumps({"models": [model], "log_level": "WARNING"}))
    with run_service("--local", "--config", str(config)) as url:
        yield url


def build_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "serve.cli.main", "eval", *map(str, arguments)]


def run_eval(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    completed = subprocess.run(
        build_command(*arguments), capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode in codes, completed.stderr
    return completed.stderr


def read_shortest(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """Return the shortest rows of a published file, which fit a small model."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return sorted(rows, key=lambda row: len(json.dumps(row)))[:num_rows]


def write_rm_bench_subset(folder: Path, num_rows: int) -> Path:
    rows_by_file = {path.name: read_shortest(path, num_rows) for path in RM_BENCH.glob("*.json")}
    return benchmark_files.write(folder, rows_by_file)


def write_rmb_subset(folder: Path, num_rows: int) -> Path:
    files = sorted(RMB.glob("BoN_set/**/*.json"))[:3]
    rows_by_file = {
        path.relative_to(RMB).as_posix(): read_shortest(path, num_rows) for path in files
    }
    return benchmark_files.write(folder, rows_by_file)


@NEEDS_ROWS
@pytest.mark.parametrize("benchmark", ["rm-bench", "rmb"])
def test_local_model_and_service_give_equal_results(
    benchmark: str, local_service: str, checkpoint_folder: Path, tmp_path: Path
) -> None:
    """Includes the items that could not be scored."""
    write_subset = write_rm_bench_subset if benchmark == "rm-bench" else write_rmb_subset
    data = ("--data", write_subset(tmp_path / "data", 2))
    model = f"tiny={checkpoint_folder / 'qwen3'}"
    local, remote = tmp_path / "local", tmp_path / "remote"
    stderr = run_eval(
        benchmark, *data, "--model", model, "--max-length", LENGTH, "-o", local, codes=(0, 3)
    )
    assert "a partial result" in stderr
    run_eval(benchmark, *data, "--url", local_service, "-o", remote, codes=(0, 3))
    assert (local / "summary.json").read_bytes() == (remote / "summary.json").read_bytes()
    summary = json.loads((local / "summary.json").read_text())
    assert summary["model"] == "tiny"
    assert summary["used"]["truncation"] == "left"
    for folder in (local, remote):
        page = (folder / "report.html").read_text()
        assert page.count("<svg") >= 4
    for ours, theirs in zip(read_scores(local), read_scores(remote), strict=True):
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-4)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_other_max_length_of_service_is_reported(local_service: str, tmp_path: Path) -> None:
    rows_by_file = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_by_file)
    stderr = run_eval("rewardbench", "--data", data, "--url", local_service, "-o", tmp_path / "out")
    assert f"takes at most {LENGTH} tokens" in stderr
    assert "2048" in stderr


def test_interrupted_evaluation_resumes(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C keeps scored chunks; the resumed run gives the files of an uninterrupted run."""
    rows = benchmark_files.rewardbench(400)
    for row in rows:
        row["prompt"] *= 5
    data = benchmark_files.write(tmp_path / "data", {"filtered.jsonl": rows})
    arguments = ("rewardbench", "--data", data, "--model", checkpoint_folder / "qwen3")
    run_eval(*arguments, "-o", tmp_path / "uninterrupted")
    process = subprocess.Popen(
        build_command(*arguments, "-o", tmp_path / "out"), stderr=subprocess.PIPE, text=True
    )
    chunks = tmp_path / "out" / "rewards.jsonl.job" / "chunks"
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not list(chunks.glob("*.gz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert "run the same command again to continue" in stderr
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "resuming after row" in run_eval(*arguments, "-o", tmp_path / "out")
    for name in ("summary.json", "scores.jsonl"):
        expected = (tmp_path / "uninterrupted" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected


def test_several_models_in_one_command(checkpoint_folder: Path, tmp_path: Path) -> None:
    rows_by_file = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_by_file)
    out = tmp_path / "out"
    models = [f"{name}={checkpoint_folder / spec}" for name, spec in
              (("a", "qwen3"), ("b", "llama-v0.1"))]  # fmt: skip
    run_eval("rewardbench", "--data", data, "--model", models[0], "--model", models[1], "-o", out)
    assert {path.name for path in out.iterdir()} == {"a", "b", "items.jsonl", "report.html"}
    page = (out / "report.html").read_text()
    assert ">a<" in page
    assert ">b<" in page
    completed = subprocess.run(
        [sys.executable, "-m", "serve.cli.main", "compare-runs", out / "a", out / "b"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert "McNemar" in completed.stdout
