"""Score the rows with errors of a job again; all other rows keep their results to the last bit.

Rows with errors are read again, and of their conversations those without a reward are scored.
Chunks stay as they are cut, and are replaced in the store one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rm_core import Reward, ScoreError
from rm_core.text import format_names
from serve.errors import JobInputError
from serve.jobs.inputs.items import ScoringInput, compute_digest
from serve.jobs.inputs.rows import Row
from serve.jobs.record_reader import ParsedRecord
from serve.jobs.row_results import Result, RowResults
from serve.jobs.runner import Chunk, ChunkRunner, parse_row
from serve.jobs.store import Digest, JobStore
from serve.jobs.summary import Summary

LASTING_CODES = frozenset(
    (
        "conversation_too_long",
        "foreign_template",
        "invalid_conversation",
        "invalid_json",
        "template_error",
    )
)
"""Codes of errors that the same row gets again from the same model with the same options."""


@dataclass(frozen=True, slots=True)
class RetryChunk(Chunk):
    """A saved chunk whose rows with errors are scored again.

    Attributes:
        number: number of the chunk in the store.
        saved_rows: all rows of the chunk, with their results so far.
        indices: which of them have an error; `rows` has these only.
    """

    number: int
    saved_rows: Sequence[RowResults]
    indices: Sequence[int]

    def fill(self, results: Mapping[Digest, Result]) -> list[RowResults]:
        """Return all rows of the chunk, with the new results."""
        rows = [*self.saved_rows]
        for index, row in zip(self.indices, Chunk.fill(self, results), strict=True):
            rows[index] = row
        return rows

    def summarize(self, rows: Sequence[RowResults], new: Iterable[Digest]) -> Summary:
        """Return the summary of the rows that were retried; see `Chunk.summarize`."""
        unseen = set(new)
        retried = [rows[index] for index in self.indices]
        summary = Summary(num_rows=len(retried), num_retried=len(retried))
        summary.num_mended = sum(row.failure is None for row in retried)
        for (_, keys), row in zip(self.rows, retried, strict=True):
            for key, result in zip(keys, row.results, strict=True):
                if isinstance(key, bytes) and isinstance(result, Reward):
                    summary.num_tokens += result.num_tokens
                    summary.num_repeated_tokens += 0 if key in unseen else result.num_tokens
                    unseen.discard(key)
        return summary


@dataclass(slots=True)
class RetryRunner(ChunkRunner):
    """One run over the chunks that have rows with errors and that the retry has not reached."""

    def _read_chunks(self) -> Iterator[Chunk]:
        first_chunk = self.store.retry.num_chunks if self.store.retry else 0
        rows: Iterator[Row] | None = None
        first_row = 0
        for number, saved_rows in enumerate(self.store.iter_chunks()):
            indices = [index for index, row in enumerate(saved_rows) if row.failure]
            if number >= first_chunk and indices:
                if rows is None:
                    rows = self.spec.source.iter_rows(first_row)
                failed = _take_rows(rows, [first_row + index for index in indices])
                yield self._build_chunk(number, first_row, saved_rows, indices, failed)
            first_row += len(saved_rows)

    def _build_chunk(
        self,
        number: int,
        first_row: int,
        saved_rows: Sequence[RowResults],
        indices: Sequence[int],
        failed: Sequence[Row],
    ) -> RetryChunk:
        conversations: dict[Digest, ScoringInput] = {}
        rows: list[tuple[ParsedRecord, list[Digest | Result]]] = []
        for index, row in zip(indices, failed, strict=True):
            record = parse_row(row, self.spec, self.kind, self.max_image_bytes)
            results: list[Result | None] = [*saved_rows[index].results]
            if len(results) != len(record.conversations):
                results = [None] * len(record.conversations)
            keys: list[Digest | Result] = []
            for conversation, result in zip(record.conversations, results, strict=True):
                if isinstance(conversation, ScoreError):
                    keys.append(conversation)
                elif isinstance(result, Reward):
                    keys.append(result)
                else:
                    keys.append(digest := compute_digest(conversation))
                    conversations[digest] = conversation
            rows.append((record, keys))
        num_bytes = sum(row.size for row in failed)
        return RetryChunk(first_row, rows, conversations, num_bytes, number, saved_rows, indices)

    def _find(self, digests: Iterable[Digest]) -> dict[Digest, Result]:
        return self.store.find_retried(digests)

    def _save(
        self,
        chunk: Chunk,
        rows: Sequence[RowResults],
        results: Mapping[Digest, Result],
        summary: Summary,
        max_batch_tokens: int | None,
    ) -> None:
        assert isinstance(chunk, RetryChunk)
        self.store.replace_chunk(chunk.number, rows, results, summary)


def summarize_again(store: JobStore) -> Summary:
    """Return the summary of a job after a retry: its rows as they are, with the work of both."""
    summary, before = Summary(), store.summary
    for rows in store.iter_chunks():
        for row in rows:
            summary.add_row(summary.num_rows, row)
    retry = store.retry.summary if store.retry else Summary()
    summary.num_retried, summary.num_mended = retry.num_retried, retry.num_mended
    for one in (before, retry):
        summary.num_repeated_tokens += one.num_repeated_tokens
        summary.num_computed_tokens += one.num_computed_tokens
        summary.num_cached_tokens += one.num_cached_tokens
        summary.num_reused_rewards += one.num_reused_rewards
        summary.num_reused_tokens += one.num_reused_tokens
        summary.seconds += one.seconds
    return summary


def format_retry(summary: Summary) -> Iterator[str]:
    """Yield what the user should know about a retry."""
    num_failed = summary.num_retried - summary.num_mended
    yield (
        f"rows with an error that were scored again: {summary.num_retried:,}; with rewards now: "
        f"{summary.num_mended:,}; with an error again: {num_failed:,}"
    )
    if codes := sorted(LASTING_CODES & summary.errors.keys()):
        yield (
            f"{format_names(codes)}: these errors follow from the row, the model or an option such "
            "as --max-length, which a retry keeps; start over with --overwrite to change an option"
        )


def _take_rows(rows: Iterator[Row], numbers: Sequence[int]) -> list[Row]:
    """Return the rows of these numbers, which are ascending."""
    found: list[Row] = []
    for row in rows:
        if row.number == numbers[len(found)]:
            found.append(row)
        if len(found) == len(numbers):
            return found
    raise JobInputError(
        f"the input has no row {numbers[len(found)]} (counted from 0) any more; restore the input, "
        "or start over with --overwrite"
    )
