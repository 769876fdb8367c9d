"""The published results of a benchmark, with local results sorted in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.catalog.entries import load_sources
from rm_core.text import format_names
from serve.errors import EvaluationError
from serve.evaluation.files import find_evaluations, read_summary
from serve.evaluation.published_results import iter_published_rows
from serve.evaluation.result import DIFFICULTY, MEAN_OF_SECTIONS, METRICS, OVERALL

LOCAL = "here"
_SORT_METRICS = {"judgebench": MEAN_OF_SECTIONS}
_MIN_PART = 8
_MAX_PHRASES = 3


class LocalResult(NamedTuple):
    """An evaluation in a folder.

    Attributes:
        folder: the folder.
        summary: content of its `summary.json`.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return str(self.summary["benchmark"])

    @property
    def missing(self) -> tuple[str, ...]:
        """Phrases that say what the result lacks; empty for a complete result."""
        num_failed = len(self.summary.get("failed", []))
        failed = [f"{num_failed:,} items could not be scored"] if num_failed else []
        return (*failed, *self.summary.get("missing", []))

    @property
    def variant(self) -> dict[str, str]:
        """Options of the benchmark that differ from the official ones."""
        used = self.summary.get("used", {})
        official = BENCHMARKS[self.benchmark].options.to_dict()
        return {
            name: used[name] for name, value in official.items() if used.get(name, value) != value
        }

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name, as in `collect_metrics`."""
        summary = self.summary
        metrics = {
            OVERALL: summary["overall"],
            MEAN_OF_SECTIONS: summary.get(MEAN_OF_SECTIONS),
            **summary["sections"],
            **summary.get(DIFFICULTY, {}),
            **summary.get(METRICS, {}),
            **summary.get("means", {}),
        }
        return {name: value for name, value in metrics.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One row of the leaderboard.

    Attributes:
        model: id on the hub, or local name of the model.
        source: title of the publication; `here` for a local result.
        folder: folder of a local result; None for a published result.
        missing: what a local result lacks; empty for a complete result.
        notes: notes on single metrics, by the metric's name.
        variant: options of the benchmark in which a local result differs from the official ones.
    """

    model: str
    figures: Mapping[str, float]  # metrics by name, from 0 to 1
    source: str
    folder: str | None
    missing: tuple[str, ...]
    notes: Mapping[str, str]
    variant: Mapping[str, str]


def read_local_results(folders: Iterable[Path]) -> list[LocalResult]:
    """Read the evaluations in folders, and in folders below them; each once.

    Raises:
        EvaluationError: a folder has no evaluation, or one that cannot be read.
    """
    paths = {path.resolve(): path for folder in folders for path in find_evaluations(folder)}
    return [LocalResult(path, read_summary(path)) for path in paths.values()]


def build_leaderboard(benchmark: str, folders: Iterable[Path]) -> list[LeaderboardRow]:
    """Return the rows of a leaderboard: best first, rows without a score, then partial results.

    Args:
        benchmark: name of the benchmark.
        folders: folders of evaluations, or folders that contain several; evaluations of other
            benchmarks in these are left out.

    Raises:
        EvaluationError: a folder has no evaluation of the benchmark.
    """
    results = []
    for folder in folders:
        found = read_local_results([folder])
        results += [one for one in found if one.benchmark == benchmark]
        if all(one.benchmark != benchmark for one in found):
            others = format_names(dict.fromkeys(one.benchmark for one in found))
            raise EvaluationError(
                f"{folder} has evaluations of {others}, not of {benchmark}; leave it out"
            )
    return rank_results(benchmark, results)


def rank_results(benchmark: str, results: Sequence[LocalResult]) -> list[LeaderboardRow]:
    """Return the rows of a leaderboard, sorted as by `build_leaderboard`.

    Args:
        benchmark: name of the benchmark.
        results: local results of the benchmark.
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
            {},
        )
        for row in iter_published_rows(benchmark)
    ]
    published = {name for row in rows for name in row.figures}
    rows += [
        LeaderboardRow(
            model=str(one.summary["model"]),
            figures=one.metrics
            | {name: value for name, value in one.summary["subsets"].items() if name in published},
            source=LOCAL,
            folder=str(one.folder),
            missing=one.missing,
            notes={},
            variant=one.variant,
        )
        for one in results
    ]
    sort_metric = get_sort_metric(benchmark)

    def get_sort_key(row: LeaderboardRow) -> tuple[bool, bool, float]:
        value = row.figures.get(sort_metric)
        return bool(row.missing), value is None, -(value or 0.0)

    return sorted(rows, key=get_sort_key)


def choose_metrics(benchmark: str, rows: Sequence[LeaderboardRow]) -> list[str]:
    """Return the metrics that a table of the rows shows, first the one that sorts it.

    Some sources publish dozens of subsets: a metric that less than an eighth of the published rows
    have is left out.
    """
    published = [row for row in rows if row.folder is None]
    counts = Counter(name for row in published for name in row.figures)
    names = dict.fromkeys([get_sort_metric(benchmark), *(n for row in rows for n in row.figures)])
    return [name for name in names if not 0 < counts[name] * _MIN_PART < len(published)]


def format_missing(missing: Sequence[str]) -> str:
    """Return what a partial result lacks: the first phrases, and the number of others."""
    more = f"; {len(missing) - _MAX_PHRASES} more" if len(missing) > _MAX_PHRASES else ""
    return "; ".join(missing[:_MAX_PHRASES]) + more


def get_sort_metric(benchmark: str) -> str:
    """Return the metric that sorts the leaderboard of a benchmark."""
    return _SORT_METRICS.get(benchmark, OVERALL)
