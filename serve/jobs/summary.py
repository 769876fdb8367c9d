"""Summary of a job: updated and saved with each chunk, printed as a table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from rich.table import Table

from rm_core import Reward
from rm_core.text import shorten
from serve.console import Console
from serve.jobs.row_results import RowResults

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
        num_reused_rewards: number of rewards that came from the reward cache.
        num_reused_tokens: number of tokens of their conversations.
        seconds: seconds spent on scoring chunks, without the time between two starts.
        examples: the first row and its error message, by error code.
        renamed: columns that hold results under another name, by result name.
        nulled: number of input values that JSON cannot hold and that are null in the output, by
            column.
        warnings: number of rows with a warning, by warning code.
        warning_examples: the first row and its warning, by warning code.
        num_retried: number of rows that had an error before the last retry.
        num_mended: number of these rows that have none since.
        correlations: correlation of the rewards with those of a trainer, by the trainer's column.
    """

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_tokens: int = 0
    num_repeated_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_reused_rewards: int = 0
    num_reused_tokens: int = 0
    seconds: float = 0.0
    examples: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    nulled: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    warning_examples: dict[str, str] = field(default_factory=dict)
    num_retried: int = 0
    num_mended: int = 0
    correlations: dict[str, float] = field(default_factory=dict)

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
        return max(0, self.num_tokens - self._num_copied_tokens - self.num_computed_tokens)

    @property
    def num_saved_tokens(self) -> int:
        """Number of tokens not computed, for any reason."""
        return self._num_copied_tokens + self.num_shared_tokens

    @property
    def _num_copied_tokens(self) -> int:
        return self.num_repeated_tokens + self.num_cached_tokens + self.num_reused_tokens

    @property
    def tokens_per_s(self) -> float:
        """Throughput in tokens of the input per second, whether computed or saved."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    def add_row(self, number: int, row: RowResults) -> None:
        """Add a row: its rewards, its error, and each code of its warnings once."""
        self.num_rows += 1
        rewards = [result for result in row.results if isinstance(result, Reward)]
        self.num_conversations += len(rewards)
        self.num_tokens += sum(reward.num_tokens for reward in rewards)
        if failure := row.failure:
            self.errors[failure.code] += 1
            self.examples.setdefault(failure.code, _format_example(number, failure.message))
        texts: dict[str, str] = {}
        for warning in row.all_warnings:
            code, _, text = warning.partition(":")
            texts.setdefault(code, text)
        for code, text in texts.items():
            self.warnings[code] += 1
            self.warning_examples.setdefault(code, _format_example(number, text.strip()))

    def add(self, other: Summary) -> None:
        """Add the summary of the chunks that follow."""
        for attribute in fields(self):
            mine, more = getattr(self, attribute.name), getattr(other, attribute.name)
            is_example = isinstance(mine, dict) and not isinstance(mine, Counter)
            setattr(self, attribute.name, more | mine if is_example else mine + more)

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


def format_summary(summary: Summary) -> Iterable[Line]:
    """Yield the results of a job as pairs of a name and a formatted value."""
    yield "rows", f"{summary.num_rows:,}"
    yield "scored", f"{summary.num_scored:,}"
    yield from format_problems(summary)
    yield "tokens", f"{summary.num_tokens:,}"
    yield "not computed", format_share(summary.num_saved_tokens, summary.num_tokens)
    yield (
        "  repeated conversations",
        format_share(summary.num_repeated_tokens, summary.num_tokens),
    )
    if summary.num_cached_tokens:
        share = format_share(summary.num_cached_tokens, summary.num_tokens)
        yield "  in the service's cache", share
    if summary.num_reused_rewards:
        share = format_share(summary.num_reused_tokens, summary.num_tokens)
        yield f"  {summary.num_reused_rewards:,} rewards in the reward cache", share
    yield "  shared prefixes", format_share(summary.num_shared_tokens, summary.num_tokens)
    yield "tokens/s", f"{summary.tokens_per_s:,.0f}"
    yield "scored in", format_duration(summary.seconds)
    for column, correlation in summary.correlations.items():
        yield f"correlation with `{column}`", f"{correlation:.4f}"
    for result, column in summary.renamed.items():
        yield f"{result}, since the input has `{result}`", column
    for column, count in summary.nulled.items():
        yield f"NaN or infinite, null in the output: {column}", f"{count:,}"


def describe_tokens(summary: Summary) -> str:
    """Return the number of tokens and the share that was not computed, as a phrase."""
    saved = format_share(summary.num_saved_tokens, summary.num_tokens)
    return f"{summary.num_tokens:,} tokens, of which {saved} were not computed"


def format_problems(summary: Summary) -> Iterable[Line]:
    """Yield the numbers of rows with an error and with a warning, by code."""
    yield "with an error", f"{summary.num_failed:,}"
    yield from _format_codes(summary.errors)
    if summary.num_retried:
        yield "retried", f"{summary.num_retried:,}"
        yield "  mended", f"{summary.num_mended:,}"
        yield "  with an error again", f"{summary.num_retried - summary.num_mended:,}"
    if summary.warnings:
        yield "rows with a warning", ""
    yield from _format_codes(summary.warnings)


def _format_codes(codes: Counter[str]) -> Iterable[Line]:
    return ((f"  {code}", f"{count:,}") for code, count in codes.most_common())


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


def _format_example(row: int, text: str) -> str:
    return f"row {row}: {shorten(text, _MAX_EXAMPLE)}"


def format_share(part: int, total: int) -> str:
    """Format a number of tokens with its share of all tokens."""
    return f"{part:,} ({100 * part / total:.1f}%)" if total else f"{part:,}"
