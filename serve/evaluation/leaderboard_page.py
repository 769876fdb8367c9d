"""The HTML page of a leaderboard over one or several benchmarks.

`leaderboard_page.html.j2` is the page. This module computes what it shows, from the files in the
folders of evaluations: their items and rewards are not read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rm_core import find_entry
from rm_core.benchmarks.base import SubsetScore
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.files import REPORT
from serve.evaluation.leaderboard import (
    LeaderboardRow,
    LocalResult,
    choose_metrics,
    format_missing,
    get_sort_metric,
    rank_results,
)
from serve.evaluation.overview import build_overview
from serve.evaluation.report import format_value, shorten_names
from serve.evaluation.runner import REWARDS
from serve.evaluation.statistics import Interval, is_proportion, wilson
from serve.jobs.atomic_io import write_atomically
from serve.jobs.output import get_job_folder
from serve.jobs.store import read_job_summary
from serve.jobs.summary import format_duration, format_share
from serve.reports.format import format_percent
from serve.reports.page import render_page
from serve.reports.plots import Bar, BarRow

_TEMPLATE = Path(__file__).with_name("leaderboard_page.html.j2")
# A table of more metrics has them as rows.
_MAX_COLUMNS = 10
# More bars would be too thin to compare.
_MAX_PLOTTED = 4
_MAX_BARS = 24
# Provenance that is a fact of scoring, in the order of the table.
_SCORING = ("num_truncated", "truncation", "max_length")


class TableRow(NamedTuple):
    """A row of a table of a benchmark.

    Attributes:
        row: the row of the leaderboard.
        label: name of the model.
        local: local result of the same checkpoint, whose difference from a published row is shown.
    """

    row: LeaderboardRow
    label: str
    local: LeaderboardRow | None = None

    def get_difference(self, metric: str) -> float | None:
        """Return local minus published value; None without both, and for a partial result."""
        if self.local is None or self.local.missing:
            return None
        if not {metric} <= self.local.figures.keys() & self.row.figures.keys():
            return None
        return self.local.figures[metric] - self.row.figures[metric]


class LocalDetails(NamedTuple):
    """What the page shows of a local result in addition to its metrics.

    Attributes:
        label: short name of the model, with the folder if names are equal.
        link: relative address of the evaluation's own report; empty without one.
        missing: what the result lacks.
        scoring: facts about scoring by name: items, errors, truncation, tokens, time.
        provenance: settings and fingerprints by name.
    """

    label: str
    link: str
    missing: Sequence[str]
    scoring: Mapping[str, str]
    provenance: Mapping[str, str]


class BenchmarkSection(NamedTuple):
    """The section of a benchmark.

    Attributes:
        name: name on the command line.
        title: name in reports.
        metric: metric that sorts the rows.
        metrics: names of the columns.
        best: highest value of each column among complete rows.
        local_rows: local results, each followed by the published results of its checkpoint.
        all_rows: local and published results, best first.
        num_published: number of published results.
        is_transposed: whether the metrics are rows, since they are many.
        local: details of the local results by folder.
        bars: sections of the local results; empty if there are too many.
    """

    name: str
    title: str
    metric: str
    metrics: Sequence[str]
    best: Mapping[str, float]
    local_rows: Sequence[TableRow]
    all_rows: Sequence[TableRow]
    num_published: int
    is_transposed: bool
    local: Mapping[str, LocalDetails]
    bars: Sequence[BarRow]


def write_leaderboard_page(
    path: Path, benchmarks: Sequence[str], results: Sequence[LocalResult]
) -> None:
    """Write the page; equal results give equal bytes.

    Args:
        path: file to write, atomically.
        benchmarks: benchmarks of the page, in the order of the columns.
        results: local results; those of other benchmarks are left out.

    Raises:
        OSError: the file cannot be written.
    """
    results = [one for one in results if one.benchmark in benchmarks]
    overview = build_overview(benchmarks, results)
    sections = [_build_section(name, results, path.parent) for name in benchmarks]
    models = list(dict.fromkeys(row.model for row in overview.rows))
    links = {folder: one.link for section in sections for folder, one in section.local.items()}
    page = render_page(
        _TEMPLATE,
        title="Leaderboard" if len(benchmarks) > 1 else f"Leaderboard: {sections[0].title}",
        about=_describe(overview.rows, sections),
        overview=overview,
        short_names=dict(zip(models, shorten_names(models), strict=True)),
        titles={section.name: section.title for section in sections},
        means=[
            (title, [getattr(row, name) for row in overview.rows])
            for title, name, is_shown in (
                ("mean", "mean", len(benchmarks) > 1),
                ("mean of seven", "mean_of_seven", overview.has_seven),
            )
            if is_shown and any(getattr(row, name) is not None for row in overview.rows)
        ],
        best={
            name: max(
                (
                    row.cells[name].value or 0.0
                    for row in overview.rows
                    if name in row.cells and not row.cells[name].missing
                ),
                default=None,
            )
            for name in benchmarks
        },
        links=links,
        sections=sections,
        partial=[
            f"{one.label}, {section.title}: {format_missing(one.missing)}"
            for section in sections
            for one in section.local.values()
            if one.missing
        ],
        format_variant=_format_variant,
    )
    # Names of models may contain lone surrogates, which UTF-8 cannot encode.
    write_atomically(path, page.encode(errors="replace"))


def _describe(rows: Sequence[Any], sections: Sequence[BenchmarkSection]) -> str:
    num_local = sum(row.is_local for row in rows)
    models = [f"{num_local} with local results"] if num_local else []
    if len(rows) > num_local:
        models.append(f"{len(rows) - num_local} with published results")
    where = sections[0].title if len(sections) == 1 else f"{len(sections)} benchmarks"
    return f"models on {where}: {', '.join(models) or 'none'}"


def _build_section(name: str, results: Sequence[LocalResult], target: Path) -> BenchmarkSection:
    by_folder = {str(one.folder): one for one in results if one.benchmark == name}
    rows = rank_results(name, [*by_folder.values()])
    published = [row for row in rows if row.folder is None]
    models = list(dict.fromkeys(row.model for row in rows))
    short_names = dict(zip(models, shorten_names(models), strict=True))
    counts = Counter(str(one.summary["model"]) for one in by_folder.values())
    complete = [row for row in rows if not row.missing]
    metrics = choose_metrics(name, rows)
    labels = {
        folder: short_names[model] + (f" ({folder})" if counts[model] > 1 else "")
        for folder, one in by_folder.items()
        for model in (str(one.summary["model"]),)
    }

    def build_row(row: LeaderboardRow, same: LeaderboardRow | None = None) -> TableRow:
        if row.folder is not None:
            return TableRow(row, labels[row.folder])
        return TableRow(row, short_names[row.model], same)

    local_rows = []
    checkpoints: dict[str, LeaderboardRow] = {}
    for row in rows:
        if row.folder is not None:
            entry = find_entry(row.model)
            same = [one for one in published if entry and one.model == entry.id]
            local_rows += [build_row(row), *(build_row(one, row) for one in same)]
            if entry:
                checkpoints.setdefault(entry.id, row)
    return BenchmarkSection(
        name=name,
        title=BENCHMARKS[name].title,
        metric=get_sort_metric(name),
        metrics=metrics,
        best={
            metric: max((row.figures.get(metric, 0.0) for row in complete), default=0.0)
            for metric in metrics
        },
        local_rows=local_rows,
        all_rows=[build_row(row, checkpoints.get(row.model)) for row in rows],
        num_published=len(published),
        is_transposed=len(metrics) > _MAX_COLUMNS,
        local={
            folder: _build_details(labels[folder], one, target) for folder, one in by_folder.items()
        },
        bars=_build_bars([*by_folder.values()]),
    )


def _build_details(label: str, one: LocalResult, folder: Path) -> LocalDetails:
    return LocalDetails(
        label,
        _build_link(one.folder / REPORT, folder),
        one.missing,
        dict(_iter_scoring(one)),
        dict(_iter_provenance(one)),
    )


def _build_bars(local: Sequence[LocalResult]) -> list[BarRow]:
    """Return the sections of local results as bars; nothing if there are too many bars."""
    names = list(dict.fromkeys(name for one in local for name in one.summary["sections"]))
    if not (0 < len(local) <= _MAX_PLOTTED and 1 < len(names) <= _MAX_BARS):
        return []
    return [BarRow(name, [_build_bar(name, one.summary) for one in local]) for name in names]


def _build_bar(name: str, summary: Mapping[str, Any]) -> Bar | None:
    value = summary["sections"].get(name)
    if value is None:
        return None
    counts = summary.get("counts", {}).get("sections", {}).get(name)
    interval: Interval | None = None
    if counts and is_proportion(SubsetScore(value, **counts)):
        interval = wilson(counts["num_correct"], counts["num_items"])
    return Bar(value, format_percent(value, 1), interval, f"{name}: {format_percent(value)}")


def _build_link(report: Path, folder: Path) -> str:
    if not report.is_file():
        return ""
    relative = os.path.relpath(report.resolve(), folder.resolve())
    return quote(Path(relative).as_posix())


def _iter_scoring(one: LocalResult) -> Iterator[tuple[str, str]]:
    summary = one.summary
    yield "items", f"{summary['num_items']:,}"
    errors = Counter(str(failed["code"]) for failed in summary.get("failed", []))
    yield "not scored", ", ".join(f"{n:,} {code}" for code, n in errors.most_common()) or "none"
    used = summary.get("used", {})
    for name in _SCORING:
        if name in used:
            yield name, format_value(used[name])
    job = read_job_summary(get_job_folder(one.folder / REWARDS))
    if job is not None:
        yield "tokens", f"{job.num_tokens:,}"
        yield "not computed", format_share(job.num_saved_tokens, job.num_tokens)
        yield "tokens/s", f"{job.tokens_per_s:,.0f}"
        yield "scored in", format_duration(job.seconds)


def _iter_provenance(one: LocalResult) -> Iterator[tuple[str, str]]:
    yield "folder", str(one.folder)
    for name, value in one.summary.get("used", {}).items():
        if name not in _SCORING:
            yield name, format_value(value)


def _format_variant(variant: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (variant or {}).items())
