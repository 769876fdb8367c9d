"""What a job did, in figures: filled chunk by chunk, kept in the manifest, shown at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from rm_core import Reward, ScoreError
from serve.jobs.record_schema import RecordKind

_MAX_EXAMPLE = 300
_COUNTERS = ("errors", "warnings", "nulled")


@dataclass(slots=True)
class Summary:
    """Figures of a whole job, all its starts together.

    Attributes:
        num_rows: of the input, up to `--limit`.
        errors: rows with an error, by its code.
        num_conversations: that have a reward.
        num_tokens: of those conversations, each counted in full, as often as it occurs.
        num_repeated_tokens: of those that were not scored, since one like it was.
        num_computed_tokens: that went through the model.
        seconds: in which chunks were scored; time between two starts does not count.
        examples: the first row of each code, and what its error says.
        renamed: names of results that the input has too, and the columns that they are in.
        nulled: values of the input that JSON cannot hold and that are null in the output, by
            column.
        warnings: rows with a warning, by its code.
        warning_examples: the first row of each code, and what its warning says.
    """

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_tokens: int = 0
    num_repeated_tokens: int = 0
    num_computed_tokens: int = 0
    seconds: float = 0.0
    examples: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    nulled: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    warning_examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())

    @property
    def num_scored(self) -> int:
        """Rows without one."""
        return self.num_rows - self.num_failed

    @property
    def num_shared_tokens(self) -> int:
        """Not computed, since conversations that were scored together start with them."""
        return max(0, self.num_tokens - self.num_repeated_tokens - self.num_computed_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the input a second, whether computed or saved."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    def add_error(self, row: int, error: ScoreError) -> None:
        """Count a row with an error.

        Args:
            row: its number, from 0.
            error: the first in it.
        """
        self.errors[error.code] += 1
        self.examples.setdefault(error.code, f"row {row}: {error.message[:_MAX_EXAMPLE]}")

    def add_warnings(self, row: int, warnings: Sequence[str]) -> None:
        """Count the warnings of a row, each code once.

        Args:
            row: its number, from 0.
            warnings: each begins with a code and a colon.
        """
        seen: set[str] = set()
        for warning in warnings:
            code, _, text = warning.partition(":")
            if code not in seen:
                seen.add(code)
                self.warnings[code] += 1
                example = f"row {row}: {text.strip()[:_MAX_EXAMPLE]}"
                self.warning_examples.setdefault(code, example)

    def add(self, other: Summary) -> None:
        """Count another part of the job too."""
        self.num_rows += other.num_rows
        self.errors.update(other.errors)
        self.warnings.update(other.warnings)
        self.examples = other.examples | self.examples
        self.warning_examples = other.warning_examples | self.warning_examples
        self.num_conversations += other.num_conversations
        self.num_tokens += other.num_tokens
        self.num_repeated_tokens += other.num_repeated_tokens
        self.num_computed_tokens += other.num_computed_tokens
        self.seconds += other.seconds

    def as_json(self) -> dict[str, Any]:
        """Plain data, for the manifest; `from_json` reads it."""
        # Not `asdict`, which makes a Counter into one of pairs.
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        return {**plain, **counters}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Summary:
        """What `as_json` made."""
        counters = {name: Counter(plain[name]) for name in _COUNTERS}
        return cls(**{**plain, **counters})


class RowSink(Protocol):
    """Is told of every row of a finished job, in order, while the output is written."""

    def add(
        self,
        kind: RecordKind | None,
        results: Sequence[Reward | ScoreError],
        error: ScoreError | None,
    ) -> None:
        """One row.

        Args:
            shape: of its record; None if it has none, or could not be read.
            results: of its conversations, in order; for a pair: chosen, rejected.
            error: what the row's `error` column says; also set if only one of several failed.
        """
        ...

    def write(self, summary: Summary) -> None:
        """All rows were told; called once, before the job counts as done."""
        ...
