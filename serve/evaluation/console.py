"""Results as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from serve.console import Console
from serve.evaluation.artifacts import is_partial
from serve.evaluation.metric_names import collect_metrics
from serve.evaluation.result import Evaluation, MetricComparison


def print_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Print the results of several models, and their published results."""
    rows = [collect_metrics(one.result) for one in evaluations]
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [f"{one.model} (partial)" if is_partial(one) else one.model for one in evaluations]
    print_table(
        evaluations[0].benchmark.title,
        ["accuracy, %", *heads],
        ([name, *(format_percent(row.get(name)) for row in rows)] for name in names),
    )
    for one in evaluations:
        if one.comparisons:
            print_table(
                f"{one.model}: comparison with published results",
                ["metric", "here", "published", "difference", "source"],
                (
                    [
                        c.metric,
                        format_percent(c.ours),
                        format_percent(c.published),
                        _format_difference(c),
                        c.source,
                    ]
                    for c in one.comparisons
                ),
            )


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is never wrapped."""
    table = Table(title=title, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def format_percent(value: float | None) -> str:
    """Format a fraction as a percentage without the sign; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def _format_difference(comparison: MetricComparison) -> str:
    if comparison.ours is None:
        return "-"
    return f"{100 * (comparison.ours - comparison.published):+.2f}"
