"""Evaluations with a carrier whose rewards are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from job_runs import FakeExecutor

import serve.evaluation.report
from rm_core.benchmarks.registry import build_benchmark
from serve.evaluation.command import EvalRequest, evaluate_models, evaluate_scores
from serve.evaluation.result import Evaluation
from serve.jobs.command import ExecutorOptions


@pytest.fixture
def carriers(monkeypatch: pytest.MonkeyPatch) -> list[FakeExecutor]:
    """Those that score, in the order in which they are needed; one is made where there is none."""
    waiting: list[FakeExecutor] = []

    def carrier(self: ExecutorOptions, folder: object, *, overwrite: bool = False) -> FakeExecutor:
        return waiting.pop(0) if waiting else FakeExecutor()

    monkeypatch.setattr(ExecutorOptions, "build_executor", carrier)
    return waiting


Evaluate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Sequence[Evaluation]]:
    """What reports are asked for, by their paths; plots take seconds, so that none is written."""
    asked: dict[Path, Sequence[Evaluation]] = {}
    monkeypatch.setattr(serve.evaluation.report, "write_report", asked.__setitem__)
    return asked


@pytest.fixture
def evaluate(carriers: list[FakeExecutor], reports: object, tmp_path: Path) -> Evaluate:
    """Evaluate into `tmp_path / output`, on the rows of `benchmark_files` unless others are given.

    Returns the exit code and what was told.
    """

    def run(
        name: str = "rewardbench",
        output: str = "out",
        *,
        models: tuple[str, ...] = ("demo",),
        data: Path | None = None,
        scores: Path | None = None,
        called: str | None = None,
        options: dict[str, str] | None = None,
        **how: Any,
    ) -> tuple[int, list[str]]:
        told: list[str] = []
        if data is None:
            data = benchmark_files.write(tmp_path / "data" / name, benchmark_files.EVERY[name])
        made = build_benchmark(name, **(options or {}))
        asked = EvalRequest(made, str(data), None, tmp_path / output, told.append)
        if scores is not None:
            return evaluate_scores(asked, scores, called), told
        ways = [ExecutorOptions({"model": model}) for model in models]
        return evaluate_models(asked, ways, **{"truncation": None, "overwrite": False, **how}), told

    return run
