"""The table of results that a job prints to standard error at its end."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from serve.console import Console
from serve.jobs.progress import format_duration
from serve.jobs.summary import Summary

Line = tuple[str, str]


def format_summary(summary: Summary) -> Iterable[Line]:
    """Yield the results of a job as pairs of a name and a formatted value."""
    yield "rows", f"{summary.num_rows:,}"
    yield "scored", f"{summary.num_scored:,}"
    yield "with an error", f"{summary.num_failed:,}"
    for code, count in summary.errors.most_common():
        yield f"  {code}", f"{count:,}"
    if summary.warnings:
        yield "rows with a warning", ""
    for code, count in summary.warnings.most_common():
        yield f"  {code}", f"{count:,}"
    yield "tokens", f"{summary.num_tokens:,}"
    saved = summary.num_repeated_tokens + summary.num_shared_tokens
    yield "not computed", _format_share(saved, summary.num_tokens)
    yield (
        "  repeated conversations",
        _format_share(summary.num_repeated_tokens, summary.num_tokens),
    )
    yield "  shared prefixes", _format_share(summary.num_shared_tokens, summary.num_tokens)
    yield "tokens/s", f"{summary.tokens_per_s:,.0f}"
    yield "scored in", format_duration(summary.seconds)
    for result, column in summary.renamed.items():
        yield f"{result}, since the input has `{result}`", column
    for column, count in summary.nulled.items():
        yield f"NaN or infinite, null in the output: {column}", f"{count:,}"


def format_examples(summary: Summary) -> Iterable[str]:
    """Yield the first row of each error code and each warning code; rows count from 0."""
    for codes, examples in (
        (summary.errors, summary.examples),
        (summary.warnings, summary.warning_examples),
    ):
        for code, _ in codes.most_common():
            if example := examples.get(code):
                yield f"{code}, first seen in {example}"


def print_lines(lines: Iterable[Line]) -> None:
    """Print names and values as a table to standard error."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, value)
    Console(stderr=True).print(table)


def _format_share(part: int, total: int) -> str:
    return f"{part:,} ({100 * part / total:.1f}%)" if total else f"{part:,}"
