"""`skyreward eval`: with a local model, with a service, interrupted, on real rows."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import benchmark_files
import preloaded
import pytest
from command_line import invoke
from conftest import BENCHMARK_DATA
from job_runs import count_chunks
from peer_service import TINY_MAX_LENGTH, Served
from waiting import PATIENCE_S

RM_BENCH, RMB = BENCHMARK_DATA / "rm-bench", BENCHMARK_DATA / "rmb"
NEEDS_ROWS = pytest.mark.skipif(
    not (RM_BENCH.is_dir() and RMB.is_dir()), reason="the published files are missing"
)


def run_eval(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    result = invoke("eval", *arguments)
    assert result.exit_code in codes, result.stderr
    return result.stderr


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
    benchmark: str, served: Served, tmp_path: Path
) -> None:
    """Includes the items that could not be scored."""
    write_subset = write_rm_bench_subset if benchmark == "rm-bench" else write_rmb_subset
    data = ("--data", write_subset(tmp_path / "data", 2))
    model = ("--model", f"tiny={served.folders['tiny']}", "--max-length", TINY_MAX_LENGTH)
    service = ("--url", served.url, "--model", "tiny")
    local, remote = tmp_path / "local", tmp_path / "remote"
    assert "a partial result" in run_eval(benchmark, *data, *model, "-o", local, codes=(0, 3))
    run_eval(benchmark, *data, *service, "-o", remote, codes=(0, 3))
    assert (local / "summary.json").read_bytes() == (remote / "summary.json").read_bytes()
    summary = json.loads((local / "summary.json").read_text())
    assert summary["model"] == "tiny"
    assert summary["used"]["truncation"] == "left"
    for folder in (local, remote):
        page = (folder / "report.html").read_text()
        assert page.count("<svg") >= 4
    for ours, theirs in zip(read_scores(local), read_scores(remote), strict=True):
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-4)


@pytest.mark.parametrize("trajectories", ["flattened", "messages"])
def test_trajectories_by_model_and_by_service_give_equal_results(
    trajectories: str, served: Served, tmp_path: Path
) -> None:
    rows = benchmark_files.plan_rewardbench(num_rows=3)
    data = benchmark_files.write(tmp_path / "data", rows)
    how = ("plan-rewardbench", "--data", data, "--variant", f"trajectories={trajectories}")
    model = ("--model", f"tiny={served.folders['tiny']}", "--max-length", TINY_MAX_LENGTH)
    local, remote = tmp_path / "local", tmp_path / "remote"
    run_eval(*how, *model, "-o", local)
    run_eval(*how, "--url", served.url, "--model", "tiny", "-o", remote)
    assert (local / "summary.json").read_bytes() == (remote / "summary.json").read_bytes()
    scores = list(zip(read_scores(local), read_scores(remote), strict=True))
    assert len(scores) == 6
    for ours, theirs in scores:
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-4)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_other_max_length_of_service_is_reported(served: Served, tmp_path: Path) -> None:
    rows_by_file = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_by_file)
    service = ("--url", served.url, "--model", "tiny")
    stderr = run_eval("rewardbench", "--data", data, *service, "-o", tmp_path / "out")
    assert f"takes at most {TINY_MAX_LENGTH} tokens" in stderr
    assert "2048" in stderr


def test_interrupted_evaluation_resumes(served: Served, tmp_path: Path) -> None:
    """Ctrl-C keeps scored chunks; the resumed run gives the files of an uninterrupted run."""
    rows = benchmark_files.rewardbench(400)
    for row in rows:
        row["prompt"] *= 5
    data = benchmark_files.write(tmp_path / "data", {"filtered.jsonl": rows})
    arguments = ("rewardbench", "--data", data, "--model", served.folders["tiny"])
    run_eval(*arguments, "-o", tmp_path / "uninterrupted")
    errors = tmp_path / "errors"
    process = preloaded.start(("eval", *arguments, "-o", tmp_path / "out"), errors)
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not count_chunks(tmp_path / "out" / "rewards.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130, errors.read_text()
    assert "run the same command again to continue" in errors.read_text()
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "resuming at row" in run_eval(*arguments, "-o", tmp_path / "out")
    for name in ("summary.json", "scores.jsonl"):
        expected = (tmp_path / "uninterrupted" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected


def test_several_models_in_one_command(served: Served, tmp_path: Path) -> None:
    rows_by_file = {"filtered.jsonl": benchmark_files.rewardbench()}
    data = benchmark_files.write(tmp_path / "data", rows_by_file)
    out = tmp_path / "out"
    models = [f"a={served.folders['tiny']}", f"b={served.folders['llama']}"]
    run_eval("rewardbench", "--data", data, "--model", models[0], "--model", models[1], "-o", out)
    assert {path.name for path in out.iterdir()} == {"a", "b", "items.jsonl", "report.html"}
    page = (out / "report.html").read_text()
    assert ">a<" in page
    assert ">b<" in page
    compared = invoke("compare-runs", out / "a", out / "b")
    assert compared.exit_code == 0, compared.stderr
    assert "McNemar" in compared.stdout
