"""All published rows of a benchmark, with results of our own sorted in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_core.catalog.entries import load_sources
from serve.errors import EvaluationError
from serve.escaping import escape_line
from serve.evaluation.artifacts import read_summary
from serve.evaluation.console import format_percent, print_table
from serve.evaluation.metric_names import DIFFICULTY, MEAN_OF_SECTIONS, OVERALL
from serve.evaluation.published import iter_published_rows

LOCAL = "here"
_SORT_METRICS = {"judgebench": MEAN_OF_SECTIONS}


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One line of the board.

    Attributes:
        model: id on the hub, or as it is called here.
        figures: 0 to 1, by name.
        source: where they were published, as people read it; `here` for our own.
        folder: of our own; None for published ones.
        missing: what our own is without; empty for a whole result.
        notes: of single figures, by their names.
    """

    model: str
    figures: Mapping[str, float]
    source: str
    folder: str | None
    missing: tuple[str, ...]
    notes: Mapping[str, str]


def build_leaderboard(benchmark: str, folders: Iterable[Path]) -> list[LeaderboardRow]:
    """The best first; then partial results, and what has no overall figure.

    Args:
        benchmark: its name.
        folders: of evaluations; those of several models may be given by the folder above them.

    Raises:
        EvaluationError: a folder has no evaluation, or one of another benchmark.
    """
    sources = load_sources()
    places = [
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
        places += [_read_local_row(benchmark, found) for found in _find_evaluations(folder)]
    leading = get_sort_metric(benchmark)

    def order(place: LeaderboardRow) -> tuple[bool, bool, float]:
        value = place.figures.get(leading)
        return bool(place.missing), value is None, -(value or 0.0)

    return sorted(places, key=order)


def get_sort_metric(benchmark: str) -> str:
    """What a board is sorted by."""
    return _SORT_METRICS.get(benchmark, OVERALL)


def print_leaderboard(title: str, benchmark: str, rows: Sequence[LeaderboardRow]) -> None:
    """The board as a table, percent; below it the notes of its figures."""
    leading = get_sort_metric(benchmark)
    names = list(dict.fromkeys([leading, *(name for place in rows for name in place.figures)]))
    print_table(
        title,
        ["model", *(name.replace("_", " ") for name in names), "source"],
        (
            [
                _format_model(place),
                *(format_percent(place.figures.get(n)) for n in names),
                place.folder or place.source,
            ]
            for place in rows
        ),
    )
    for place in rows:
        if place.missing:
            print(escape_line(f"{place.model} (partial): {'; '.join(place.missing)}"))


def to_dicts(rows: Iterable[LeaderboardRow]) -> list[dict[str, Any]]:
    """The board as plain data."""
    return [asdict(place) for place in rows]


def _format_model(row: LeaderboardRow) -> str:
    if row.folder is None:
        return row.model
    return f"> {row.model}" + (" (partial)" if row.missing else "")


def _find_evaluations(folder: Path) -> list[Path]:
    if folder.is_dir() and not (folder / "summary.json").exists():
        below = sorted(path.parent for path in folder.glob("*/summary.json"))
        if below:
            return below
    return [folder]


def _read_local_row(benchmark: str, folder: Path) -> LeaderboardRow:
    summary = read_summary(folder)
    if summary["benchmark"] != benchmark:
        raise EvaluationError(
            f"{folder} is of {summary['benchmark']}, not of {benchmark}; leave it out"
        )
    figures = {
        OVERALL: summary["overall"],
        MEAN_OF_SECTIONS: summary.get(MEAN_OF_SECTIONS),
        **summary["sections"],
        **summary.get(DIFFICULTY, {}),
    }
    failed = len(summary.get("failed", []))
    lacks = [f"{failed:,} items could not be scored"] * bool(failed) + summary.get("missing", [])
    return LeaderboardRow(
        model=summary["model"],
        figures={name: value for name, value in figures.items() if value is not None},
        source=LOCAL,
        folder=str(folder),
        missing=tuple(lacks),
        notes={},
    )
