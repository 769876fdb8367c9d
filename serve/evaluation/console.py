"""Results, comparisons and leaderboards as tables on standard output."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.table import Table

from rm_core.benchmarks.base import Item
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.inputs.conversations import get_text
from rm_core.text import shorten
from serve.console import Console
from serve.escaping import escape_line
from serve.evaluation.compare import RunComparison
from serve.evaluation.compare_folders import FolderComparison
from serve.evaluation.files import is_partial
from serve.evaluation.leaderboard import (
    LeaderboardRow,
    choose_metrics,
    format_missing,
    get_sort_metric,
)
from serve.evaluation.overview import Overview, OverviewCell
from serve.evaluation.report import shorten_names
from serve.evaluation.result import Evaluation, collect_metrics
from serve.evaluation.statistics import Interval
from serve.jobs.summary import describe_tokens
from serve.reports.format import format_percent

_HEAD_WIDTH = 14
# Narrower texts would be hard to read.
_MIN_TEXT_WIDTH = 28


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
        ["metric, %", *names, "difference", "95% interval"],
        (
            [
                _format_name(name),
                _format_percent(a),
                _format_percent(b),
                _format_difference(b, a),
                _format_interval(comparison.intervals.get(name)),
            ]
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
    for name, (pearson, spearman) in comparison.correlations.items():
        lines.append((f"{name}, Pearson", f"{pearson:.4f}"))
        lines.append((f"{name}, Spearman", f"{spearman:.4f}"))
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


def print_folder_comparison(comparison: FolderComparison) -> None:
    """Print the overall scores of all benchmarks that both folders have, then what is left out."""
    names = shorten_names(comparison.names)
    if comparison.comparisons:
        print_table(
            "Benchmarks of both, in percent",
            [
                *("benchmark", "metric", *names, "difference", "95% interval"),
                *("agreement", "McNemar, exact p", "items in both"),
            ],
            (_format_overall(name, one) for name, one in comparison.comparisons.items()),
        )
    for name, one in comparison.comparisons.items():
        for run, count in zip(names, one.only, strict=True):
            if count:
                print(escape_line(f"{name}: {count:,} items are in {run} only"))
    for name, reason in comparison.refused.items():
        print(escape_line(f"{name} is not compared: {reason}"))
    for path, only in zip(comparison.paths, comparison.only, strict=True):
        if only:
            print(escape_line(f"only in {path}: {', '.join(only)}"))
    if len(comparison.comparisons) > 1:
        print("--benchmark NAME shows all metrics of one benchmark and the items that changed.")


def print_leaderboard(benchmark: str, rows: Sequence[LeaderboardRow]) -> None:
    """Print the leaderboard as a table in percent, then what partial results lack."""
    title = BENCHMARKS[benchmark].title
    sort_metric = get_sort_metric(benchmark)
    names = choose_metrics(benchmark, rows)
    if rows:
        print_table(
            f"{title}, in percent, sorted by {_format_name(sort_metric)}",
            ["model", *map(_format_name, names), "source"],
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
        _print_notes(row.model, row.missing, row.variant)
    if {name for row in rows for name in row.figures} - {*names}:
        print("Subsets of which few results are published are left out; --json has them.")
    if all(row.folder for row in rows):
        print(f"{title}: the catalogue has no published results.")
    if not rows:
        print("Give the folder of an evaluation for local results.")


def print_overview(overview: Overview) -> None:
    """Print the table over several benchmarks in percent, then what its marks mean."""
    means = [
        ("mean", [row.mean for row in overview.rows], len(overview.benchmarks) > 1),
        ("mean of seven", [row.mean_of_seven for row in overview.rows], overview.has_seven),
    ]
    means = [one for one in means if one[2] and any(value is not None for value in one[1])]
    models = list(dict.fromkeys(row.model for row in overview.rows))
    short = dict(zip(models, shorten_names(models), strict=True))
    print_table(
        "Leaderboard, in percent",
        ["model", *(name for name, _, _ in means), *overview.benchmarks],
        (
            [
                f"> {short[row.model]}" if row.is_local else short[row.model],
                *(_format_percent(values[index]) for _, values, _ in means),
                *(_format_cell(row.cells.get(name)) for name in overview.benchmarks),
            ]
            for index, row in enumerate(overview.rows)
        ),
    )
    if any(row.is_local for row in overview.rows):
        print("> is a local result; the other rows are published.")
    for row in overview.rows:
        for name, cell in row.cells.items():
            _print_notes(f"{row.model}, {name}", cell.missing, cell.variant or {})
    published = {name for row in overview.rows if not row.is_local for name in row.cells}
    for name in overview.benchmarks:
        if name not in published:
            print(f"{BENCHMARKS[name].title}: the catalogue has no published results.")


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns that do not fit follow in further tables with the same first column.

    Only long texts are wrapped, and heads.
    """
    console, cells = Console(), [list(row) for row in rows]
    heads = [textwrap.fill(head, _HEAD_WIDTH, break_long_words=False) for head in heads]
    columns = [[row[index] for row in cells] for index in range(len(heads))]
    widths = []
    for index, (head, column) in enumerate(zip(heads, columns, strict=True)):
        longest = max(map(cell_len, [*head.splitlines(), *column]), default=0)
        limit = max([_MIN_TEXT_WIDTH, *map(cell_len, head.splitlines())])
        widths.append(min(longest, limit) if index else longest)
    for shown in _fill_tables(widths, console.width):
        table = Table(title=title, title_justify="left")
        for index in shown:
            fits = all(cell_len(text) <= widths[index] for text in columns[index])
            table.add_column(heads[index], no_wrap=fits, min_width=widths[index], overflow="fold")
        for row in cells:
            table.add_row(*(row[index] for index in shown))
        console.print(table)


def _fill_tables(widths: Sequence[int], available: int) -> Iterator[list[int]]:
    """Yield the columns of each table: the first column, and as many others as fit."""
    shown = [0]
    for index in range(1, len(widths)):
        if len(shown) > 1 and sum(widths[i] + 3 for i in [*shown, index]) + 1 > available:
            yield shown
            shown = [0]
        shown.append(index)
    yield shown


def _format_name(metric: str) -> str:
    return metric.replace("_", " ")


def _format_percent(value: float | None) -> str:
    return format_percent(value, unit="", nothing="-")


def _format_difference(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return "-"
    return f"{round(100 * (value - reference), 2) + 0.0:+.2f}"


def _format_interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def _format_overall(benchmark: str, comparison: RunComparison) -> list[str]:
    metric = get_sort_metric(benchmark)
    a, b = comparison.metrics[metric]
    return [
        benchmark,
        _format_name(metric),
        _format_percent(a),
        _format_percent(b),
        _format_difference(b, a),
        _format_interval(comparison.intervals.get(metric)),
        format_percent(comparison.agreement, nothing="-"),
        f"{comparison.test.exact_p:.4g}",
        f"{comparison.num_items:,}",
    ]


def _format_cell(cell: OverviewCell | None) -> str:
    if cell is None:
        return ""
    return _format_percent(cell.value) + ("*" if cell.missing or cell.variant else "")


def _print_notes(name: str, missing: Sequence[str], variant: Mapping[str, str]) -> None:
    """Print what a local result lacks, and in which variant it was computed."""
    if missing:
        print(escape_line(f"{name} (partial): {format_missing(missing)}"))
    if variant:
        options = ", ".join(f"{option}={value}" for option, value in variant.items())
        print(escape_line(f"{name} (variant): {options}"))


def _format_model(row: LeaderboardRow) -> str:
    if row.folder is None:
        return row.model
    marks = [*(["partial"] if row.missing else []), *(["variant"] if row.variant else [])]
    return f"> {row.model}" + (f" ({', '.join(marks)})" if marks else "")


def _format_prompt(item: Item) -> str:
    return shorten(" ".join(get_text(item.prompt[-1]["content"]).split()))
