"""Chunks of a job: where rows are split, what is scored for a chunk, and the results of its rows.

The input alone decides where a chunk ends and what is scored for it: a conversation belongs to the
first row of the job that has it, and its result is copied to all other rows. A resumed job
therefore sends the same calls to the executor, and its output is equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import ChatJson
from serve.jobs.chunk_files import ChunkResult, Result, RowResults, Span
from serve.jobs.columns import Columns
from serve.jobs.dedup_store import DedupStore, Digest, KnownResult, compute_digest
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.inputs.rows import Row
from serve.jobs.record_schema import RecordKind, try_parse_record
from serve.jobs.summary import Summary

Submit: TypeAlias = Callable[[Sequence[ChatJson]], "Future[ScoreBatchResult]"]

MAX_CHUNK_BYTES = 8 * 2**20


class ParsedRow(NamedTuple):
    """A row with digests in place of its conversations.

    Attributes:
        kind: kind of the row's record; None if unknown.
        conversations: the digest of each conversation, or the error if it cannot be scored.
        error: error of a row without conversations.
        warnings: warnings about how the record was read.
    """

    kind: RecordKind | None
    conversations: tuple[Digest | ScoreError, ...]
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are scored together.

    Attributes:
        span: the rows of the chunk.
        rows: the parsed rows, `[num_rows]`.
        conversations: the distinct conversations, in the order of their first occurrence.
    """

    span: Span
    rows: tuple[ParsedRow, ...]
    conversations: dict[Digest, ChatJson]


@dataclass(slots=True)
class PendingChunk:
    """A submitted chunk whose results are pending.

    Attributes:
        span: the rows of the chunk.
        rows: the parsed rows, `[num_rows]`.
        own_digests: conversations that occur first in this chunk and were submitted with it.
        known_results: results of conversations that were in the store already.
        awaited_digests: conversations that an earlier pending chunk submitted.
        future: results of `own_digests`; None if there are none.
    """

    span: Span
    rows: tuple[ParsedRow, ...]
    own_digests: tuple[Digest, ...]
    known_results: dict[Digest, KnownResult]
    awaited_digests: tuple[Digest, ...]
    future: Future[ScoreBatchResult] | None = field(default=None)

    def finish(self, store: DedupStore) -> tuple[ChunkResult, dict[Digest, Result]]:
        """Wait for the results and fill them into the rows.

        Call this for chunks in the order of their numbers.

        Args:
            store: holds the results of all earlier chunks.

        Returns:
            The chunk, with its `seconds` not set; and the results to add to the store.

        Raises:
            RewardError: the executor failed.
        """
        scored = self.future.result() if self.future else ScoreBatchResult([], 0)
        new_results: dict[Digest, Result] = dict(zip(self.own_digests, scored.results, strict=True))
        known_results = self.known_results | store.find(self.awaited_digests)
        results = {
            digest: known_result.result for digest, known_result in known_results.items()
        } | new_results
        # Scored before by this same chunk, whose file was lost.
        rescored = {
            digest
            for digest, known_result in known_results.items()
            if known_result.chunk == self.span.chunk
        }
        rows = [_fill_row(row, results) for row in self.rows]
        summary = _count(self.rows, rows, self.span.first_row, first=new_results.keys() | rescored)
        num_computed_tokens = store.get_num_computed_tokens(self.span.chunk)
        summary.num_computed_tokens = (
            scored.num_computed_tokens if num_computed_tokens is None else num_computed_tokens
        )
        return ChunkResult(self.span, rows, summary), new_results


def split_into_chunks(rows: Iterable[Row], max_rows: int) -> Iterator[list[Row]]:
    """Yield rows in chunks; a chunk ends at `max_rows` rows or at `MAX_CHUNK_BYTES` of input."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.size
        if len(chunk) == max_rows or size >= MAX_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parse_chunk(number: int, rows: list[Row], columns: Columns) -> Chunk:
    """Parse the rows of a chunk and collect its distinct conversations.

    Args:
        number: index of the chunk.
        rows: rows of the chunk, at least one.
        columns: columns that the caller named.
    """
    conversations: dict[Digest, ChatJson] = {}
    parsed = tuple(_parse(row, columns, conversations) for row in rows)
    span = Span(
        chunk=number,
        first_row=rows[0].number,
        num_rows=len(rows),
    )
    return Chunk(span, parsed, conversations)


def submit_chunk(
    chunk: Chunk, store: DedupStore, in_flight: set[Digest], submit: Submit
) -> PendingChunk:
    """Submit the conversations of a chunk that were not submitted before.

    Args:
        chunk: the next chunk.
        store: holds the results of finished chunks.
        in_flight: digests of conversations that pending chunks submitted; this chunk's are added.
        submit: submits conversations to an executor.
    """
    awaited_digests = tuple(digest for digest in chunk.conversations if digest in in_flight)
    known_results = store.find(
        [digest for digest in chunk.conversations if digest not in in_flight]
    )
    own_conversations = {
        digest: conversation
        for digest, conversation in chunk.conversations.items()
        if digest not in in_flight and digest not in known_results
    }
    in_flight.update(own_conversations)
    future = submit(list(own_conversations.values())) if own_conversations else None
    return PendingChunk(
        chunk.span, chunk.rows, tuple(own_conversations), known_results, awaited_digests, future
    )


def collect_results(chunk: Chunk, rows: Sequence[RowResults]) -> dict[Digest, Result]:
    """Return the result of each conversation of a finished chunk."""
    return {
        digest: result
        for parsed, row in zip(chunk.rows, rows, strict=True)
        for digest, result in zip(parsed.conversations, row.results, strict=True)
        if isinstance(digest, bytes)
    }


def _parse(row: Row, columns: Columns, conversations: dict[Digest, ChatJson]) -> ParsedRow:
    parsed = try_parse_record(row.record, columns)
    if parsed.error:
        return ParsedRow(parsed.kind, (), parsed.error)
    digests_or_errors: list[Digest | ScoreError] = []
    for conversation in parsed.conversations:
        if isinstance(conversation, ScoreError):
            digests_or_errors.append(conversation)
            continue
        digest = compute_digest(conversation)
        conversations.setdefault(digest, conversation)
        digests_or_errors.append(digest)
    return ParsedRow(parsed.kind, tuple(digests_or_errors), warnings=parsed.warnings)


def _fill_row(row: ParsedRow, results: dict[Digest, Result]) -> RowResults:
    if row.error:
        return RowResults(row.kind, [], row.error)
    filled = [
        digest_or_error if isinstance(digest_or_error, ScoreError) else results[digest_or_error]
        for digest_or_error in row.conversations
    ]
    return RowResults(row.kind, filled, warnings=row.warnings)


def _count(
    parsed: Iterable[ParsedRow], rows: list[RowResults], first_row: int, *, first: set[Digest]
) -> Summary:
    """Return the summary of a chunk, without computed tokens and seconds.

    Args:
        parsed: the parsed rows.
        rows: the results of these rows.
        first_row: number of the first row.
        first: digests of conversations that no earlier chunk has.
    """
    summary = Summary(num_rows=len(rows))
    unseen = set(first)
    for number, (parsed_row, row) in enumerate(zip(parsed, rows, strict=True), first_row):
        if failure := row.failure:
            summary.add_error(number, failure)
        summary.add_warnings(number, row.all_warnings)
        for digest, result in zip(parsed_row.conversations, row.results, strict=True):
            if isinstance(result, Reward):
                summary.num_conversations += 1
                summary.num_tokens += result.num_tokens
                if digest not in unseen:
                    summary.num_repeated_tokens += result.num_tokens
            if isinstance(digest, bytes):
                unseen.discard(digest)
    return summary
