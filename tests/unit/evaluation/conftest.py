"""Evaluations with an executor whose rewards are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from job_runs import FakeExecutor

import serve.evaluation.command
import serve.evaluation.runner
from rm_core.benchmarks.registry import build_benchmark
from serve.evaluation.command import EvalRequest, evaluate_models, evaluate_scores
from serve.evaluation.result import Evaluation
from serve.jobs.command import ExecutorOptions


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> list[FakeExecutor]:
    """Executors for the next evaluations, in order; a new one is created if the list is empty."""
    prepared: list[FakeExecutor] = []

    def build(self: ExecutorOptions, folder: object, *, overwrite: bool = False) -> FakeExecutor:
        return prepared.pop(0) if prepared else FakeExecutor(max_image_bytes=10 * 2**20)

    monkeypatch.setattr(ExecutorOptions, "build_executor", build)
    # The executors read images, and the demo model does not.
    monkeypatch.setattr(serve.evaluation.runner, "_reads_images", lambda options: True)
    return prepared


Evaluate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Sequence[Evaluation]]:
    """The evaluations of each report by its path; nothing is written, since plots take seconds."""
    requested: dict[Path, Sequence[Evaluation]] = {}
    monkeypatch.setattr(serve.evaluation.command, "write_report", requested.__setitem__)
    return requested


@pytest.fixture
def evaluate(executors: list[FakeExecutor], reports: object, tmp_path: Path) -> Evaluate:
    """Evaluate into `tmp_path / output`, by default on the rows of `benchmark_files`.

    Returns the exit code and the lines for the user.
    """

    def run(
        name: str = "rewardbench",
        output: str = "out",
        *,
        models: tuple[str, ...] = ("demo",),
        data: Path | None = None,
        scores: Path | None = None,
        model_name: str | None = None,
        options: dict[str, str] | None = None,
        **overrides: Any,
    ) -> tuple[int, list[str]]:
        lines: list[str] = []
        if data is None:
            data = benchmark_files.write(tmp_path / "data" / name, benchmark_files.EVERY[name])
        benchmark = build_benchmark(name, **(options or {}))
        request = EvalRequest(benchmark, str(data), None, tmp_path / output, lines.append)
        if scores is not None:
            return evaluate_scores(request, scores, model_name), lines
        kind = {"kind": "step", "step_format": "skywork"} if benchmark.kinds == ("step",) else {}
        executor_options = [ExecutorOptions({"model": model, **kind}) for model in models]
        arguments = {"truncation": None, "overwrite": False, **overrides}
        return evaluate_models(request, executor_options, **arguments), lines

    return run
