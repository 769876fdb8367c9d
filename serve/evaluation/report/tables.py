"""Warnings, results and provenance of a report, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rm_core.benchmarks.intervals import Intervals
from serve.evaluation.report.format import (
    NOTHING,
    format_interval,
    format_metric,
    format_percent,
    format_value,
)
from serve.evaluation.result import Evaluation, MetricComparison
from serve.jobs.summary_table import format_summary
from serve.reports.document import section
from serve.reports.elements import (
    Cell,
    colour_key,
    details_block,
    format_number,
    format_quantity,
    key_value_table,
    stat_cards,
    table,
    warning,
)

# Metrics that are plotted instead of listed.
_PLOT_KEYS = ("matrices", "best_of_n")
_MAX_METRIC_COLUMNS = 4


def render_warnings(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield warnings about partial results and failed items."""
    for one in evaluations:
        prefix = f"{one.model}: " if len(evaluations) > 1 else ""
        if one.result.missing:
            title = f"{prefix}Partial result. It is not comparable with a leaderboard."
            yield warning(title, one.result.missing)
        if one.failed_items:
            quantity = format_quantity(len(one.failed_items), "item")
            yield warning(f"{prefix}{quantity} without rewards, excluded from all metrics.", [])


def render_result(evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]) -> Markup:
    """Return the metrics of a leaderboard."""
    if len(evaluations) == 1:
        return _render_stat_cards(evaluations[0], intervals[0])
    names = list(dict.fromkeys(name for one in evaluations for name in one.result.sections))
    rows = [_get_scores(one, names) for one in evaluations]
    best = [max((row[index] or 0.0 for row in rows), default=0.0) for index in range(len(rows[0]))]
    body = []
    for number, (one, row, interval) in enumerate(zip(evaluations, rows, intervals, strict=True)):
        cells = [
            Cell(format_percent(value), "best" if value and value == best[index] else "")
            for index, value in enumerate(row)
        ]
        cells.insert(1, Cell(format_interval(interval.overall)))
        name = Cell(colour_key(number) + one.model, "text")
        body.append([name, *cells, Cell(f"{len(one.scored_items):,}")])
    head = ["model", "overall", "95% interval", *names, "items"]
    return section("Result", table(head, body))


def render_published(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield the comparison with published results of the same checkpoint."""
    children = []
    for one in evaluations:
        if one.comparisons:
            if len(evaluations) > 1:
                children.append(Markup("<h3>{}</h3>").format(one.model))
            head = ["metric", "here", "published", "difference"]
            text_head = [Cell("source", "text"), Cell("known reasons for a difference", "text")]
            children.append(
                table([*head, *text_head], [_format_comparison(line) for line in one.comparisons])
            )
    if children:
        about = "metrics of the same checkpoint, in percent; the difference is here minus published"
        yield section("Comparison with published results", *children, about=about)


def render_further_metrics(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield the metrics in addition to those of the leaderboard, if the benchmark has any."""
    metrics_by_model = [dict(_iter_metrics(one.result.extra)) for one in evaluations]
    names = list(dict.fromkeys(name for metrics in metrics_by_model for name in metrics))
    # A name with two prefixes belongs to a single section.
    section_names = [name for name in names if name.count(": ") > 1]
    overall_names = [name for name in names if name not in section_names]
    if names:
        by_section: Markup | str = ""
        if section_names:
            section_table = _build_metrics_table(evaluations, metrics_by_model, section_names)
            by_section = details_block("By section", section_table)
        overall_table = _build_metrics_table(evaluations, metrics_by_model, overall_names)
        yield section("Further metrics", overall_table, by_section)


def _build_metrics_table(
    evaluations: Sequence[Evaluation],
    metrics_by_model: Sequence[Mapping[str, float]],
    names: Sequence[str],
) -> Markup:
    """Return a table with few metrics of several models as columns, otherwise as rows."""
    columns = [
        [format_metric(name, metrics[name]) if name in metrics else NOTHING for name in names]
        for metrics in metrics_by_model
    ]
    models = _build_model_cells(evaluations)
    if len(evaluations) > 1 and len(names) <= _MAX_METRIC_COLUMNS:
        rows = [[model.content, *values] for model, values in zip(models, columns, strict=True)]
        return table(["", *names], rows)
    by_name = zip(*columns, strict=True)
    return table(
        [Cell(""), *models], [[name, *values] for name, values in zip(names, by_name, strict=True)]
    )


def render_provenance(evaluations: Sequence[Evaluation]) -> Markup:
    """Return the provenance of the results and the statistics of the scoring jobs."""
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for one in evaluations for name in one.provenance):
        values = [format_value(one.provenance.get(name)) for one in evaluations]
        rows.append([Cell(name, "first"), *(Cell(value, "text") for value in values)])
    head = [Cell(""), *(Cell(cell.content, "text") for cell in _build_model_cells(evaluations))]
    job_summaries = [
        details_block(f"Scoring job: {one.model}", key_value_table(format_summary(one.summary)))
        for one in evaluations
        if one.summary
    ]
    return section("Provenance", table(head, rows) if rows else "", *job_summaries)


def _render_stat_cards(evaluation: Evaluation, intervals: Intervals) -> Markup:
    stats = [(format_percent(evaluation.result.overall), "overall")]
    if intervals.overall:
        stats.append((format_interval(intervals.overall), "95% interval"))
    stats.append((f"{len(evaluation.scored_items):,}", "items"))
    return section("Result", stat_cards(stats))


def _get_scores(evaluation: Evaluation, names: Sequence[str]) -> list[float | None]:
    sections = evaluation.result.sections
    return [
        evaluation.result.overall,
        *(sections[name].score if name in sections else None for name in names),
    ]


def _format_comparison(line: MetricComparison) -> list[Cell | Markup | str]:
    difference = NOTHING
    if line.ours is not None:
        # Adding 0.0 turns -0.0 into 0.0.
        difference = format_number(round(100 * (line.ours - line.published), 2) + 0.0, "+.2f")
    return [
        line.metric.replace("_", " "),
        NOTHING if line.ours is None else f"{100 * line.ours:.2f}",
        # With as many digits as the source.
        f"{round(100 * line.published, 4):g}",
        difference,
        Cell(line.source, "text"),
        Cell(line.note, "text"),
    ]


def _iter_metrics(extra: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in extra.items():
        if not prefix and name in _PLOT_KEYS:
            continue
        if isinstance(value, Mapping):
            yield from _iter_metrics(value, f"{prefix}{name}: ")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}".replace("_", " "), value


def _build_model_cells(evaluations: Sequence[Evaluation]) -> list[Cell]:
    if len(evaluations) == 1:
        return [Cell("")]
    return [Cell(colour_key(number) + one.model, "name") for number, one in enumerate(evaluations)]
