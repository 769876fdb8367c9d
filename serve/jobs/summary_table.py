"""The last thing a job shows: its figures as a table, on standard error."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from serve.console import Console
from serve.jobs.progress import format_duration
from serve.jobs.summary import Summary

Line = tuple[str, str]


def format_summary(summary: Summary) -> Iterable[Line]:
    """What a job did, as names and values."""
    yield "rows", f"{summary.num_rows:,}"
    yield "scored", f"{summary.num_scored:,}"
    yield "with an error", f"{summary.num_failed:,}"
    for code, number in summary.errors.most_common():
        yield f"  {code}", f"{number:,}"
    if summary.warnings:
        yield "rows with a warning", ""
    for code, number in summary.warnings.most_common():
        yield f"  {code}", f"{number:,}"
    yield "tokens", f"{summary.num_tokens:,}"
    saved = summary.num_repeated_tokens + summary.num_shared_tokens
    yield "not computed", _format_share(saved, summary.num_tokens)
    yield (
        "  same conversation as before",
        _format_share(summary.num_repeated_tokens, summary.num_tokens),
    )
    yield "  same start as another's", _format_share(summary.num_shared_tokens, summary.num_tokens)
    yield "tokens/s", f"{summary.tokens_per_s:,.0f}"
    yield "scored in", format_duration(summary.seconds)
    for result, column in summary.renamed.items():
        yield f"{result}, since the input has `{result}`", column
    for column, number in summary.nulled.items():
        yield f"NaN or infinite, null in the output: {column}", f"{number:,}"


def format_examples(summary: Summary) -> Iterable[str]:
    """The first row with an error or a warning of each kind, rows counted from 0."""
    for codes, examples in (
        (summary.errors, summary.examples),
        (summary.warnings, summary.warning_examples),
    ):
        for code, _ in codes.most_common():
            if example := examples.get(code):
                yield f"{code}, first in {example}"


def print_lines(lines: Iterable[Line]) -> None:
    """Show names and values on standard error."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, value)
    Console(stderr=True).print(table)


def _format_share(some: int, whole: int) -> str:
    return f"{some:,} ({100 * some / whole:.1f}%)" if whole else f"{some:,}"
