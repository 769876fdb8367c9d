"""The leaderboard over several benchmarks: a row for each model, a column for each benchmark."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rm_core import find_entry
from rm_core.benchmarks.aggregation import mean
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.catalog.entries import load_sources
from serve.evaluation.leaderboard import LOCAL, LocalResult, get_sort_metric
from serve.evaluation.published_results import iter_published_rows

SEVEN = (
    "rewardbench",
    "rewardbench2",
    "ppe-preference",
    "ppe-correctness",
    "rmb",
    "rm-bench",
    "judgebench",
)
"""Benchmarks of the average in the table of Skywork-Reward-V2."""
# What makes two evaluations of one name evaluations of one model.
_IDENTITY = ("revision", "version", "template_sha256", "dtype")


class Published(NamedTuple):
    """The published result of a model on a benchmark.

    Attributes:
        value: value of the metric that sorts the leaderboard, from 0 to 1.
        source: title of the publication.
        note: note of the source; may be empty.
    """

    value: float
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class OverviewCell:
    """The result of a model on a benchmark.

    Attributes:
        value: value of the metric that sorts the benchmark's leaderboard, from 0 to 1; None
            without one.
        source: title of the publication; `here` for a local result.
        folder: folder of a local result; None for a published result.
        missing: what a local result lacks; empty for a complete result.
        variant: options of the benchmark in which a local result differs from the official ones.
        published: published result of the same checkpoint next to a local one; None if unknown.
    """

    value: float | None
    source: str
    folder: str | None = None
    missing: tuple[str, ...] = ()
    variant: Mapping[str, str] | None = None
    published: Published | None = None

    @property
    def difference(self) -> float | None:
        """Value minus published value; None for a partial result, or without a published one."""
        if self.published is None or self.value is None or self.missing:
            return None
        return self.value - self.published.value


@dataclass(frozen=True, slots=True)
class OverviewRow:
    """The results of one model.

    Attributes:
        model: id on the hub, or local name of the model.
        source: `here` for local results, `published` for published ones.
        cells: results by benchmark; benchmarks without a result are left out.
        mean: unweighted mean over all benchmarks of the table; None unless all are complete.
        mean_of_seven: unweighted mean over `SEVEN`; None unless all are complete.
    """

    model: str
    source: str
    cells: Mapping[str, OverviewCell]
    mean: float | None
    mean_of_seven: float | None

    @property
    def is_local(self) -> bool:
        """Whether the results are local."""
        return self.source == LOCAL


@dataclass(frozen=True, slots=True)
class Overview:
    """The table.

    Attributes:
        benchmarks: names of the benchmarks, in the order of the columns.
        rows: rows, best mean first; then those without a mean, most complete results first.
    """

    benchmarks: tuple[str, ...]
    rows: tuple[OverviewRow, ...]

    @property
    def has_seven(self) -> bool:
        """Whether the mean of seven benchmarks is another mean than that of all columns."""
        return set(SEVEN) < set(self.benchmarks)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON data."""
        return {
            "benchmarks": {name: get_sort_metric(name) for name in self.benchmarks},
            "rows": [
                {
                    "model": row.model,
                    "source": row.source,
                    "mean": row.mean,
                    "mean_of_seven": row.mean_of_seven,
                    "results": {
                        name: {**asdict(cell), "difference": cell.difference}
                        for name, cell in row.cells.items()
                    },
                }
                for row in self.rows
            ],
        }


def choose_benchmarks(names: Iterable[str], results: Sequence[LocalResult]) -> tuple[str, ...]:
    """Return the benchmarks of the table.

    Args:
        names: names that the user gave; without names, the benchmarks of the local results, or
            those with published results if nothing is local.
        results: local results.
    """
    wanted = {*names} or {one.benchmark for one in results}
    if not wanted:
        wanted = {name for name in BENCHMARKS if any(iter_published_rows(name))}
    return tuple(name for name in BENCHMARKS if name in wanted)


def build_overview(benchmarks: Sequence[str], results: Iterable[LocalResult]) -> Overview:
    """Build the table of all models with a local or a published result.

    Args:
        benchmarks: names of the columns.
        results: local results; those of other benchmarks are left out.
    """
    published = _choose_published(benchmarks)
    rows = [
        _build_row(
            benchmarks,
            model,
            "published",
            {name: OverviewCell(one.value, one.source) for name, one in by_benchmark.items()},
        )
        for model, by_benchmark in published.items()
    ]
    wanted = [one for one in results if one.benchmark in benchmarks]
    groups = list(_group_by_model(wanted))
    counts = Counter(str(group[0].summary["model"]) for group in groups)
    for group in groups:
        model = str(group[0].summary["model"])
        entry = find_entry(model)
        known = published.get(entry.id, {}) if entry else {}
        cells = {one.benchmark: _build_cell(one, known.get(one.benchmark)) for one in group}
        if counts[model] > 1:
            model += f" ({os.path.commonpath([one.folder for one in group])})"
        rows.append(_build_row(benchmarks, model, LOCAL, cells))
    return Overview(tuple(benchmarks), tuple(sorted(rows, key=_get_sort_key)))


def _choose_published(benchmarks: Sequence[str]) -> dict[str, dict[str, Published]]:
    """Return one published result for each model and benchmark.

    Of several sources, the one with most of the model's columns is taken, so that a row has as few
    sources as possible; then the first of the catalogue.
    """
    found: dict[str, dict[str, dict[str, Published]]] = defaultdict(lambda: defaultdict(dict))
    sources = load_sources()
    for name in benchmarks:
        for row in iter_published_rows(name):
            if metric := row.metrics.get(get_sort_metric(name)):
                one = Published(metric.value, sources[row.source], metric.note)
                found[row.model][name].setdefault(row.source, one)
    chosen = {}
    for model, by_benchmark in found.items():
        counts = Counter(source for by_source in by_benchmark.values() for source in by_source)
        chosen[model] = {
            name: by_source[max(by_source, key=lambda source: counts[source])]
            for name, by_source in by_benchmark.items()
        }
    return chosen


def _group_by_model(results: Iterable[LocalResult]) -> Iterator[list[LocalResult]]:
    """Yield the results of each model; no group has two results of one benchmark.

    Results of one name are results of one model, unless their fingerprints differ; rewards from a
    file have none. Where a benchmark is there twice, the folders decide: those that contain the
    folders of the evaluations (MODEL/BENCHMARK), or else the names of these (BENCHMARK/MODEL).
    """
    for named in _group_by(results, lambda one: one.summary["model"]):
        identities = {identity for one in named if any(identity := _get_identity(one))}
        for group in _group_by(named, _get_identity) if len(identities) > 1 else [named]:
            yield from _split_duplicates(group)


def _split_duplicates(group: list[LocalResult]) -> list[list[LocalResult]]:
    for get_key in (
        lambda one: None,
        lambda one: one.folder.parent,
        lambda one: one.folder.name,
    ):
        parts = _group_by(group, get_key)
        if all(len({one.benchmark for one in part}) == len(part) for part in parts):
            return parts
    return [[one] for one in group]


def _group_by(
    results: Iterable[LocalResult], get_key: Callable[[LocalResult], Hashable]
) -> list[list[LocalResult]]:
    groups: dict[Hashable, list[LocalResult]] = defaultdict(list)
    for one in results:
        groups[get_key(one)].append(one)
    return list(groups.values())


def _get_identity(one: LocalResult) -> tuple[object, ...]:
    used = one.summary.get("used", {})
    return tuple(used.get(name) for name in _IDENTITY)


def _build_cell(one: LocalResult, published: Published | None) -> OverviewCell:
    return OverviewCell(
        one.metrics.get(get_sort_metric(one.benchmark)),
        LOCAL,
        str(one.folder),
        one.missing,
        one.variant,
        published,
    )


def _build_row(
    benchmarks: Sequence[str], model: str, source: str, cells: Mapping[str, OverviewCell]
) -> OverviewRow:
    in_order = {name: cells[name] for name in benchmarks if name in cells}
    return OverviewRow(
        model, source, in_order, _compute_mean(in_order, benchmarks), _compute_mean(in_order, SEVEN)
    )


def _compute_mean(cells: Mapping[str, OverviewCell], benchmarks: Sequence[str]) -> float | None:
    """Return the unweighted mean over benchmarks; None unless all are complete."""
    values = [
        cells[name].value if name in cells and not cells[name].missing else None
        for name in benchmarks
    ]
    return None if None in values else mean(value for value in values if value is not None)


def _get_sort_key(row: OverviewRow) -> tuple[bool, float, bool, float, int, str]:
    num_complete = sum(cell.value is not None and not cell.missing for cell in row.cells.values())
    return (
        row.mean is None,
        -(row.mean or 0.0),
        row.mean_of_seven is None,
        -(row.mean_of_seven or 0.0),
        -num_complete,
        row.model.casefold(),
    )
