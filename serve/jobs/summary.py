"""Summary of a job: updated and saved with each chunk, printed as a table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from rich.table import Table

from rm_core import Reward, ScoreError
from serve.console import Console
from serve.jobs.record_schema import RecordKind

Line = tuple[str, str]
"""A name and a formatted value."""

_MAX_EXAMPLE = 300
_COUNTERS = ("errors", "warnings", "nulled")


@dataclass(slots=True)
class Summary:
    """Summary of a whole job, over all its starts.

    Attributes:
        num_rows: number of rows of the input, up to `--limit`.
        errors: number of rows with an error, by error code.
        num_conversations: number of conversations with a reward.
        num_tokens: number of tokens of these conversations, each counted in full at every
            occurrence.
        num_repeated_tokens: number of tokens of conversations that were not scored, because an
            equal conversation was.
        num_computed_tokens: number of tokens that went through the model.
        num_cached_tokens: number of tokens of conversations whose rewards came from the cache of a
            service.
        seconds: seconds spent on scoring chunks, without the time between two starts.
        examples: the first row and its error message, by error code.
        renamed: columns that hold results under another name, by result name.
        nulled: number of input values that JSON cannot hold and that are null in the output, by
            column.
        warnings: number of rows with a warning, by warning code.
        warning_examples: the first row and its warning, by warning code.
    """

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_tokens: int = 0
    num_repeated_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    seconds: float = 0.0
    examples: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    nulled: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    warning_examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Number of rows with an error."""
        return sum(self.errors.values())

    @property
    def num_scored(self) -> int:
        """Number of rows without an error."""
        return self.num_rows - self.num_failed

    @property
    def num_shared_tokens(self) -> int:
        """Number of tokens not computed because conversations in a batch share a prefix."""
        saved = self.num_repeated_tokens + self.num_cached_tokens
        return max(0, self.num_tokens - saved - self.num_computed_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Throughput in tokens of the input per second, whether computed or saved."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    def add_error(self, row: int, error: ScoreError) -> None:
        """Count a row with an error.

        Args:
            row: number of the row, from 0.
            error: first error of the row.
        """
        self.errors[error.code] += 1
        self.examples.setdefault(error.code, f"row {row}: {error.message[:_MAX_EXAMPLE]}")

    def add_warnings(self, row: int, warnings: Sequence[str]) -> None:
        """Count the warnings of a row, each code once.

        Args:
            row: number of the row, from 0.
            warnings: warnings of the row, each starting with a code and a colon.
        """
        codes: set[str] = set()
        for warning in warnings:
            code, _, text = warning.partition(":")
            if code not in codes:
                codes.add(code)
                self.warnings[code] += 1
                example = f"row {row}: {text.strip()[:_MAX_EXAMPLE]}"
                self.warning_examples.setdefault(code, example)

    def add(self, other: Summary) -> None:
        """Add the summary of another chunk or of several chunks."""
        self.num_rows += other.num_rows
        self.errors.update(other.errors)
        self.warnings.update(other.warnings)
        self.examples = other.examples | self.examples
        self.warning_examples = other.warning_examples | self.warning_examples
        self.num_conversations += other.num_conversations
        self.num_tokens += other.num_tokens
        self.num_repeated_tokens += other.num_repeated_tokens
        self.num_computed_tokens += other.num_computed_tokens
        self.num_cached_tokens += other.num_cached_tokens
        self.seconds += other.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON data; `from_json` reads it."""
        # `asdict` would turn a Counter into a Counter of pairs.
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        return {**values, **counters}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Summary:
        """Create a summary from the data of `as_json`."""
        counters = {name: Counter(values[name]) for name in _COUNTERS}
        return cls(**{**values, **counters})


class RowSink(Protocol):
    """Receives every row of a finished job, in order, while the output is written."""

    def add(
        self,
        kind: RecordKind | None,
        results: Sequence[Reward | ScoreError],
        error: ScoreError | None,
    ) -> None:
        """Receive one row.

        Args:
            kind: kind of the record; None if unknown or if the row could not be read.
            results: results of the record's conversations, in order; of a pair, chosen comes first.
            error: error of the row's `error` column; also set if only one of several conversations
                failed.
        """
        ...

    def write(self, summary: Summary) -> None:
        """Finish after all rows; called once, before the job counts as finished."""
        ...


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
    saved = summary.num_repeated_tokens + summary.num_cached_tokens + summary.num_shared_tokens
    yield "not computed", _format_share(saved, summary.num_tokens)
    yield (
        "  repeated conversations",
        _format_share(summary.num_repeated_tokens, summary.num_tokens),
    )
    if summary.num_cached_tokens:
        share = _format_share(summary.num_cached_tokens, summary.num_tokens)
        yield "  in the service's cache", share
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


def format_duration(seconds: float) -> str:
    """Format a duration as `1:02:03`, `2:03` or `3 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _format_share(part: int, total: int) -> str:
    return f"{part:,} ({100 * part / total:.1f}%)" if total else f"{part:,}"
