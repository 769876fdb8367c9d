"""Figures as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from serve.console import Console
from serve.evaluation.artifacts import is_partial
from serve.evaluation.metric_names import named_figures
from serve.evaluation.result import Compared, Evaluation


def print_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Overall, sections and difficulties of several models, and what is published of each."""
    rows = [named_figures(one.figures) for one in evaluations]
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [f"{one.model} (partial)" if is_partial(one) else one.model for one in evaluations]
    print_table(
        evaluations[0].benchmark.title,
        ["accuracy, %", *heads],
        ([name, *(percent(row.get(name)) for row in rows)] for name in names),
    )
    for one in evaluations:
        if one.compared:
            print_table(
                f"{one.model}, as published",
                ["figure", "here", "there", "difference", "source"],
                (
                    [c.metric, percent(c.ours), percent(c.published), *_difference(c), c.source]
                    for c in one.compared
                ),
            )


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is never wrapped."""
    table = Table(title=title, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def percent(value: float | None) -> str:
    """A share as people write it."""
    return "-" if value is None else f"{100 * value:.2f}"


def _difference(one: Compared) -> list[str]:
    return ["-" if one.ours is None else f"{100 * (one.ours - one.published):+.2f}"]
