"""The published results of a benchmark, with local results sorted in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_core.catalog.entries import load_sources
from serve.errors import EvaluationError
from serve.evaluation.files import read_summary
from serve.evaluation.published_results import iter_published_rows
from serve.evaluation.result import DIFFICULTY, MEAN_OF_SECTIONS, METRICS, OVERALL

LOCAL = "here"
_SORT_METRICS = {"judgebench": MEAN_OF_SECTIONS}


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One row of the leaderboard.

    Attributes:
        model: id on the hub, or local name of the model.
        source: title of the publication; `here` for a local result.
        folder: folder of a local result; None for a published result.
        missing: what a local result lacks; empty for a complete result.
        notes: notes on single metrics, by the metric's name.
    """

    model: str
    figures: Mapping[str, float]  # metrics by name, from 0 to 1
    source: str
    folder: str | None
    missing: tuple[str, ...]
    notes: Mapping[str, str]


def build_leaderboard(benchmark: str, folders: Iterable[Path]) -> list[LeaderboardRow]:
    """Return the rows of a leaderboard: best first, rows without a score, then partial results.

    Args:
        benchmark: name of the benchmark.
        folders: folders of evaluations, or a folder that contains the folders of several models.

    Raises:
        EvaluationError: a folder has no evaluation, or an evaluation of another benchmark.
    """
    sources = load_sources()
    rows = [
        LeaderboardRow(
            row.model,
            {metric.name: metric.value for metric in row.metrics.values()},
            sources[row.source],
            None,
            (),
            {metric.name: metric.note for metric in row.metrics.values() if metric.note},
        )
        for row in iter_published_rows(benchmark)
    ]
    for folder in folders:
        rows += [_read_local_row(benchmark, path) for path in _find_evaluations(folder)]
    sort_metric = get_sort_metric(benchmark)

    def get_sort_key(row: LeaderboardRow) -> tuple[bool, bool, float]:
        value = row.figures.get(sort_metric)
        return bool(row.missing), value is None, -(value or 0.0)

    return sorted(rows, key=get_sort_key)


def get_sort_metric(benchmark: str) -> str:
    """Return the metric that sorts the leaderboard of a benchmark."""
    return _SORT_METRICS.get(benchmark, OVERALL)


def _find_evaluations(folder: Path) -> list[Path]:
    if folder.is_dir() and not (folder / "summary.json").exists():
        subfolders = sorted(path.parent for path in folder.glob("*/summary.json"))
        if subfolders:
            return subfolders
    return [folder]


def _read_local_row(benchmark: str, folder: Path) -> LeaderboardRow:
    summary = read_summary(folder)
    if summary["benchmark"] != benchmark:
        raise EvaluationError(
            f"{folder} is an evaluation of {summary['benchmark']}, not of {benchmark}; leave it out"
        )
    metrics = {
        OVERALL: summary["overall"],
        MEAN_OF_SECTIONS: summary.get(MEAN_OF_SECTIONS),
        **summary["sections"],
        **summary.get(DIFFICULTY, {}),
        **summary.get(METRICS, {}),
    }
    num_failed = len(summary.get("failed", []))
    missing = summary.get("missing", [])
    if num_failed:
        missing = [f"{num_failed:,} items could not be scored", *missing]
    return LeaderboardRow(
        model=summary["model"],
        figures={name: value for name, value in metrics.items() if value is not None},
        source=LOCAL,
        folder=str(folder),
        missing=tuple(missing),
        notes={},
    )
