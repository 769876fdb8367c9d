"""Results, comparisons and leaderboards as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from rm_core.benchmarks.base import Item
from rm_core.inputs.conversations import get_text
from rm_core.text import shorten
from serve.console import Console
from serve.escaping import escape_line
from serve.evaluation.compare import RunComparison
from serve.evaluation.files import is_partial
from serve.evaluation.leaderboard import LeaderboardRow, get_sort_metric
from serve.evaluation.result import Evaluation, collect_metrics
from serve.jobs.summary import describe_tokens
from serve.reports.format import format_percent


def print_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Print the results of several models, and their published results."""
    rows = [collect_metrics(one.result) for one in evaluations]
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [f"{one.model} (partial)" if is_partial(one) else one.model for one in evaluations]
    print_table(
        evaluations[0].benchmark.title,
        ["accuracy, %", *heads],
        ([name, *(_format_percent(row.get(name)) for row in rows)] for name in names),
    )
    for one in evaluations:
        if one.summary:
            print(escape_line(f"{one.model}: {describe_tokens(one.summary)}"))
        if one.comparisons:
            print_table(
                f"{one.model}: comparison with published results",
                ["metric", "here", "published", "difference", "source"],
                (
                    [
                        c.metric,
                        _format_percent(c.ours),
                        _format_percent(c.published),
                        _format_difference(c.ours, c.published),
                        c.source,
                    ]
                    for c in one.comparisons
                ),
            )


def print_comparison(comparison: RunComparison, show: int) -> None:
    """Print a comparison as tables.

    Args:
        comparison: comparison to print.
        show: maximum number of flipped items to print.
    """
    names = comparison.names
    print_table(
        comparison.runs[0].benchmark.title,
        ["accuracy, %", *names, "difference"],
        (
            [name, _format_percent(a), _format_percent(b), _format_difference(b, a)]
            for name, (a, b) in comparison.metrics.items()
        ),
    )
    both, only_first, only_second, neither = comparison.counts
    lines = [
        ("items in both", f"{comparison.num_items:,}"),
        *(
            (f"items in {n} only", f"{m:,}")
            for n, m in zip(names, comparison.only, strict=True)
            if m
        ),
        (f"{comparison.unit} right in both", f"{both:,}"),
        (f"right in {names[0]} only", f"{only_first:,}"),
        (f"right in {names[1]} only", f"{only_second:,}"),
        ("wrong in both", f"{neither:,}"),
        ("agreement", format_percent(comparison.agreement, nothing="-")),
        ("McNemar, exact p", f"{comparison.test.exact_p:.4g}"),
        (
            "McNemar, chi-square",
            f"{comparison.test.chi_square:.4g} (p {comparison.test.chi_square_p:.4g})",
        ),
    ]
    if comparison.correlation:
        lines.append(("rewards, Pearson", f"{comparison.correlation[0]:.4f}"))
        lines.append(("rewards, Spearman", f"{comparison.correlation[1]:.4f}"))
    print_table("What changed", ["", ""], lines)
    if comparison.flipped_items and show:
        print_table(
            f"Largest margin shifts, {min(show, len(comparison.flipped_items))} of "
            f"{len(comparison.flipped_items):,}",
            ["item", "subset", "", *(f"margin, {name}" for name in names), "prompt"],
            (
                [
                    one.item.id,
                    one.item.subset,
                    "now right" if one.now_right else "now wrong",
                    *(f"{margin:.3f}" for margin in one.margins),
                    _format_prompt(one.item),
                ]
                for one in comparison.flipped_items[:show]
            ),
        )


def print_leaderboard(title: str, benchmark: str, rows: Sequence[LeaderboardRow]) -> None:
    """Print the leaderboard as a table in percent, then what partial results lack."""
    sort_metric = get_sort_metric(benchmark)
    names = list(dict.fromkeys([sort_metric, *(name for row in rows for name in row.figures)]))
    print_table(
        title,
        ["model", *(name.replace("_", " ") for name in names), "source"],
        (
            [
                _format_model(row),
                *(_format_percent(row.figures.get(name)) for name in names),
                row.folder or row.source,
            ]
            for row in rows
        ),
    )
    for row in rows:
        if row.missing:
            print(escape_line(f"{row.model} (partial): {'; '.join(row.missing)}"))


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is never wrapped."""
    table = Table(title=title, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _format_percent(value: float | None) -> str:
    return format_percent(value, unit="", nothing="-")


def _format_difference(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return "-"
    return f"{100 * (value - reference):+.2f}"


def _format_model(row: LeaderboardRow) -> str:
    if row.folder is None:
        return row.model
    return f"> {row.model}" + (" (partial)" if row.missing else "")


def _format_prompt(item: Item) -> str:
    return shorten(" ".join(get_text(item.prompt[-1]["content"]).split()))
