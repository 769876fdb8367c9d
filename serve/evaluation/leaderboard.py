"""All published rows of a benchmark, with results of our own sorted in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_core.catalog.entries import load_sources
from serve.errors import EvaluationError
from serve.escaping import escaped_line
from serve.evaluation.artifacts import read_summary
from serve.evaluation.console import percent, print_table
from serve.evaluation.metric_names import DIFFICULTY, MEAN_OF_SECTIONS, OVERALL
from serve.evaluation.published import published_rows

LOCAL = "here"
_LEADING = {"judgebench": MEAN_OF_SECTIONS}


@dataclass(frozen=True, slots=True)
class Place:
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


def board(benchmark: str, folders: Iterable[Path]) -> list[Place]:
    """The best first; then partial results, and what has no overall figure.

    Args:
        benchmark: its name.
        folders: of evaluations; those of several models may be given by the folder above them.

    Raises:
        EvaluationError: a folder has no evaluation, or one of another benchmark.
    """
    sources = load_sources()
    places = [
        Place(
            row.model,
            {metric.name: metric.value for metric in row.metrics.values()},
            sources[row.source],
            None,
            (),
            {metric.name: metric.note for metric in row.metrics.values() if metric.note},
        )
        for row in published_rows(benchmark)
    ]
    for folder in folders:
        places += [_local(benchmark, found) for found in _evaluations(folder)]
    leading = leading_figure(benchmark)

    def order(place: Place) -> tuple[bool, bool, float]:
        value = place.figures.get(leading)
        return bool(place.missing), value is None, -(value or 0.0)

    return sorted(places, key=order)


def leading_figure(benchmark: str) -> str:
    """What a board is sorted by."""
    return _LEADING.get(benchmark, OVERALL)


def print_board(title: str, benchmark: str, places: Sequence[Place]) -> None:
    """The board as a table, percent; below it the notes of its figures."""
    leading = leading_figure(benchmark)
    names = list(dict.fromkeys([leading, *(name for place in places for name in place.figures)]))
    print_table(
        title,
        ["model", *(name.replace("_", " ") for name in names), "source"],
        (
            [
                _called(place),
                *(percent(place.figures.get(n)) for n in names),
                place.folder or place.source,
            ]
            for place in places
        ),
    )
    for place in places:
        if place.missing:
            print(escaped_line(f"{place.model} (partial): {'; '.join(place.missing)}"))


def as_json(places: Iterable[Place]) -> list[dict[str, Any]]:
    """The board as plain data."""
    return [asdict(place) for place in places]


def _called(place: Place) -> str:
    if place.folder is None:
        return place.model
    return f"> {place.model}" + (" (partial)" if place.missing else "")


def _evaluations(folder: Path) -> list[Path]:
    if folder.is_dir() and not (folder / "summary.json").exists():
        below = sorted(path.parent for path in folder.glob("*/summary.json"))
        if below:
            return below
    return [folder]


def _local(benchmark: str, folder: Path) -> Place:
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
    return Place(
        model=summary["model"],
        figures={name: value for name, value in figures.items() if value is not None},
        source=LOCAL,
        folder=str(folder),
        missing=tuple(lacks),
        notes={},
    )
