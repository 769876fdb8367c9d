"""What must be seen first, and what is best read as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rm_core.benchmarks.intervals import Intervals
from serve.evaluation.report.format import NOTHING, between, figure, percent, plain
from serve.evaluation.result import Compared, Evaluation
from serve.jobs.summary_table import summary_lines
from serve.reports.document import section
from serve.reports.elements import Cell, counted, facts, folded, key, printed, table, tiles, warning

# Drawn as plots.
_DRAWN = ("matrices", "best_of_n")
_FEW = 4


def warnings(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """What makes a result less than it seems: it is partial, items failed."""
    for one in evaluations:
        whose = f"{one.model}: " if len(evaluations) > 1 else ""
        if one.figures.missing:
            title = f"{whose}Partial result. It does not compare with those of a leaderboard."
            yield warning(title, one.figures.missing)
        if one.failed:
            number = counted(len(one.failed), "item")
            yield warning(f"{whose}{number} without rewards, left out of all figures.", [])


def result(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> Markup:
    """The figures that a leaderboard has."""
    if len(evaluations) == 1:
        return _tiles(evaluations[0], within[0])
    names = list(dict.fromkeys(name for one in evaluations for name in one.figures.sections))
    rows = [_row(one, names) for one in evaluations]
    best = [max((row[place] or 0.0 for row in rows), default=0.0) for place in range(len(rows[0]))]
    body = []
    for number, (one, row, interval) in enumerate(zip(evaluations, rows, within, strict=True)):
        cells = [
            Cell(percent(v), "best" if v and v == best[at] else "") for at, v in enumerate(row)
        ]
        cells.insert(1, Cell(between(interval.overall)))
        name = Cell(key(number) + one.model, "text")
        body.append([name, *cells, Cell(f"{len(one.scored):,}")])
    head = ["model", "overall", "95% interval", *names, "items"]
    return section("Result", table(head, body))


def compared(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Ours beside what is published of the same checkpoint."""
    parts = []
    for one in evaluations:
        if one.compared:
            if len(evaluations) > 1:
                parts.append(Markup("<h3>{}</h3>").format(one.model))
            head = ["figure", "ours", "published", "difference"]
            words = [Cell("where", "text"), Cell("known reasons for a difference", "text")]
            parts.append(table([*head, *words], [_compared(line) for line in one.compared]))
    if parts:
        about = "figures of the same checkpoint, in percent; the difference is ours less theirs"
        yield section("Compared with what is published", *parts, about=about)


def further(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Figures beside those of the leaderboard, where the benchmark has any."""
    each = [dict(_leaves(one.figures.extra)) for one in evaluations]
    names = list(dict.fromkeys(name for leaves in each for name in leaves))
    # What has two names is of one section.
    details = [name for name in names if name.count(": ") > 1]
    first = [name for name in names if name not in details]
    if names:
        below = folded("By section", _figures(evaluations, each, details)) if details else ""
        yield section("Further figures", _figures(evaluations, each, first), below)


def _figures(
    evaluations: Sequence[Evaluation], each: Sequence[Mapping[str, float]], names: Sequence[str]
) -> Markup:
    """Few figures of several models as columns, many as rows."""
    columns = [
        [figure(name, leaves[name]) if name in leaves else NOTHING for name in names]
        for leaves in each
    ]
    models = _models(evaluations)
    if len(evaluations) > 1 and len(names) <= _FEW:
        rows = [[model.content, *values] for model, values in zip(models, columns, strict=True)]
        return table(["", *names], rows)
    by_name = zip(*columns, strict=True)
    return table(
        [Cell(""), *models], [[name, *values] for name, values in zip(names, by_name, strict=True)]
    )


def used(evaluations: Sequence[Evaluation]) -> Markup:
    """What decides the figures, and what scoring took."""
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for one in evaluations for name in one.used):
        values = [plain(one.used.get(name)) for one in evaluations]
        rows.append([Cell(name, "first"), *(Cell(value, "text") for value in values)])
    head = [Cell(""), *(Cell(cell.content, "text") for cell in _models(evaluations))]
    took = [
        folded(f"What scoring took: {one.model}", facts(summary_lines(one.summary)))
        for one in evaluations
        if one.summary
    ]
    return section("What was used", table(head, rows) if rows else "", *took)


def _tiles(one: Evaluation, within: Intervals) -> Markup:
    figures = one.figures
    shown = [(percent(figures.overall), "overall")]
    if within.overall:
        shown.append((between(within.overall), "95% interval"))
    shown.append((f"{len(one.scored):,}", "items"))
    return section("Result", tiles(shown))


def _row(one: Evaluation, names: Sequence[str]) -> list[float | None]:
    sections = one.figures.sections
    return [
        one.figures.overall,
        *(sections[name].score if name in sections else None for name in names),
    ]


def _compared(line: Compared) -> list[Cell | Markup | str]:
    difference = NOTHING
    if line.ours is not None:
        # Plus 0, since there is a minus 0.
        difference = printed(round(100 * (line.ours - line.published), 2) + 0.0, "+.2f")
    return [
        line.metric.replace("_", " "),
        NOTHING if line.ours is None else f"{100 * line.ours:.2f}",
        # As many digits as were published.
        f"{round(100 * line.published, 4):g}",
        difference,
        Cell(line.source, "text"),
        Cell(line.note, "text"),
    ]


def _leaves(more: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in more.items():
        if not above and name in _DRAWN:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}: ")
        elif isinstance(value, int | float):
            yield f"{above}{name}".replace("_", " "), value


def _models(evaluations: Sequence[Evaluation]) -> list[Cell]:
    if len(evaluations) == 1:
        return [Cell("")]
    return [Cell(key(number) + one.model, "name") for number, one in enumerate(evaluations)]
