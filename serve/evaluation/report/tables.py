"""What must be seen first, and what is best read as a table."""

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

# Drawn as plots.
_PLOT_KEYS = ("matrices", "best_of_n")
_FEW = 4


def render_warnings(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """What makes a result less than it seems: it is partial, items failed."""
    for one in evaluations:
        whose = f"{one.model}: " if len(evaluations) > 1 else ""
        if one.result.missing:
            title = f"{whose}Partial result. It does not compare with those of a leaderboard."
            yield warning(title, one.result.missing)
        if one.failed_items:
            number = format_quantity(len(one.failed_items), "item")
            yield warning(f"{whose}{number} without rewards, left out of all figures.", [])


def render_result(evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]) -> Markup:
    """The figures that a leaderboard has."""
    if len(evaluations) == 1:
        return _render_stat_cards(evaluations[0], intervals[0])
    names = list(dict.fromkeys(name for one in evaluations for name in one.result.sections))
    rows = [_get_scores(one, names) for one in evaluations]
    best = [max((row[place] or 0.0 for row in rows), default=0.0) for place in range(len(rows[0]))]
    body = []
    for number, (one, row, interval) in enumerate(zip(evaluations, rows, intervals, strict=True)):
        cells = [
            Cell(format_percent(v), "best" if v and v == best[at] else "")
            for at, v in enumerate(row)
        ]
        cells.insert(1, Cell(format_interval(interval.overall)))
        name = Cell(colour_key(number) + one.model, "text")
        body.append([name, *cells, Cell(f"{len(one.scored_items):,}")])
    head = ["model", "overall", "95% interval", *names, "items"]
    return section("Result", table(head, body))


def render_published(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Ours beside what is published of the same checkpoint."""
    parts = []
    for one in evaluations:
        if one.comparisons:
            if len(evaluations) > 1:
                parts.append(Markup("<h3>{}</h3>").format(one.model))
            head = ["figure", "ours", "published", "difference"]
            words = [Cell("where", "text"), Cell("known reasons for a difference", "text")]
            parts.append(
                table([*head, *words], [_format_comparison(line) for line in one.comparisons])
            )
    if parts:
        about = "figures of the same checkpoint, in percent; the difference is ours less theirs"
        yield section("Compared with what is published", *parts, about=about)


def render_further_metrics(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Figures beside those of the leaderboard, where the benchmark has any."""
    each = [dict(_iter_metrics(one.result.extra)) for one in evaluations]
    names = list(dict.fromkeys(name for leaves in each for name in leaves))
    # What has two names is of one section.
    details = [name for name in names if name.count(": ") > 1]
    first = [name for name in names if name not in details]
    if names:
        below = (
            details_block("By section", _build_metrics_table(evaluations, each, details))
            if details
            else ""
        )
        yield section("Further figures", _build_metrics_table(evaluations, each, first), below)


def _build_metrics_table(
    evaluations: Sequence[Evaluation], each: Sequence[Mapping[str, float]], names: Sequence[str]
) -> Markup:
    """Few figures of several models as columns, many as rows."""
    columns = [
        [format_metric(name, leaves[name]) if name in leaves else NOTHING for name in names]
        for leaves in each
    ]
    models = _build_model_cells(evaluations)
    if len(evaluations) > 1 and len(names) <= _FEW:
        rows = [[model.content, *values] for model, values in zip(models, columns, strict=True)]
        return table(["", *names], rows)
    by_name = zip(*columns, strict=True)
    return table(
        [Cell(""), *models], [[name, *values] for name, values in zip(names, by_name, strict=True)]
    )


def render_provenance(evaluations: Sequence[Evaluation]) -> Markup:
    """What decides the figures, and what scoring took."""
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for one in evaluations for name in one.provenance):
        values = [format_value(one.provenance.get(name)) for one in evaluations]
        rows.append([Cell(name, "first"), *(Cell(value, "text") for value in values)])
    head = [Cell(""), *(Cell(cell.content, "text") for cell in _build_model_cells(evaluations))]
    took = [
        details_block(
            f"What scoring took: {one.model}", key_value_table(format_summary(one.summary))
        )
        for one in evaluations
        if one.summary
    ]
    return section("What was used", table(head, rows) if rows else "", *took)


def _render_stat_cards(one: Evaluation, intervals: Intervals) -> Markup:
    figures = one.result
    shown = [(format_percent(figures.overall), "overall")]
    if intervals.overall:
        shown.append((format_interval(intervals.overall), "95% interval"))
    shown.append((f"{len(one.scored_items):,}", "items"))
    return section("Result", stat_cards(shown))


def _get_scores(one: Evaluation, names: Sequence[str]) -> list[float | None]:
    sections = one.result.sections
    return [
        one.result.overall,
        *(sections[name].score if name in sections else None for name in names),
    ]


def _format_comparison(line: MetricComparison) -> list[Cell | Markup | str]:
    difference = NOTHING
    if line.ours is not None:
        # Plus 0, since there is a minus 0.
        difference = format_number(round(100 * (line.ours - line.published), 2) + 0.0, "+.2f")
    return [
        line.metric.replace("_", " "),
        NOTHING if line.ours is None else f"{100 * line.ours:.2f}",
        # As many digits as were published.
        f"{round(100 * line.published, 4):g}",
        difference,
        Cell(line.source, "text"),
        Cell(line.note, "text"),
    ]


def _iter_metrics(more: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in more.items():
        if not above and name in _PLOT_KEYS:
            continue
        if isinstance(value, Mapping):
            yield from _iter_metrics(value, f"{above}{name}: ")
        elif isinstance(value, int | float):
            yield f"{above}{name}".replace("_", " "), value


def _build_model_cells(evaluations: Sequence[Evaluation]) -> list[Cell]:
    if len(evaluations) == 1:
        return [Cell("")]
    return [Cell(colour_key(number) + one.model, "name") for number, one in enumerate(evaluations)]
