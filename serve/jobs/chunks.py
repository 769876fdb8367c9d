"""The rows of a job in chunks: where they are cut, what is scored of each, and what comes of it.

Where a chunk ends is decided by the input alone, and so is what is scored for it: a conversation
belongs to the first row of the job that has it, and its result is copied to all others. So a job
that was killed gives a carrier the same calls again, and the same output to the last bit.
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
from serve.jobs.inputs.source import Row
from serve.jobs.record_schema import RecordKind, try_parse_record
from serve.jobs.summary import Summary

Submit: TypeAlias = Callable[[Sequence[ChatJson]], "Future[ScoreBatchResult]"]

MAX_CHUNK_BYTES = 8 * 2**20


class ParsedRow(NamedTuple):
    """What is left of a row once its conversations are known by their digests.

    Attributes:
        shape: of its record; None if it is not known.
        conversations: the digest of each, or why it cannot be scored.
        error: why the row has none.
        warnings: about how the record was read.
    """

    kind: RecordKind | None
    conversations: tuple[Digest | ScoreError, ...]
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are scored together.

    Attributes:
        span: which rows.
        rows: `[num_rows]`.
        conversations: the distinct ones, in the order in which they come first.
    """

    span: Span
    rows: tuple[ParsedRow, ...]
    conversations: dict[Digest, ChatJson]


@dataclass(slots=True)
class PendingChunk:
    """A chunk on its way.

    Attributes:
        span: which rows.
        rows: `[num_rows]`.
        own: conversations that this chunk is the first to have and that were sent to be scored.
        known: those whose result was there already.
        elsewhere: those that a chunk before this one, itself on its way, has sent.
        future: answers for `own`; None where it is empty.
    """

    span: Span
    rows: tuple[ParsedRow, ...]
    own_digests: tuple[Digest, ...]
    known_results: dict[Digest, KnownResult]
    awaited_digests: tuple[Digest, ...]
    future: Future[ScoreBatchResult] | None = field(default=None)

    def finish(self, store: DedupStore) -> tuple[ChunkResult, dict[Digest, Result]]:
        """Wait for the results, put them into the rows, and keep them in the store.

        Chunks are finished in the order of their numbers.

        Args:
            seen: has the results of all chunks before.

        Returns:
            The chunk, its time not yet known; and what it has to add to the store.

        Raises:
            RewardError: the carrier failed.
        """
        scored = self.future.result() if self.future else ScoreBatchResult([], 0)
        mine: dict[Digest, Result] = dict(zip(self.own_digests, scored.results, strict=True))
        known = self.known_results | store.find(self.awaited_digests)
        results = {digest: one.result for digest, one in known.items()} | mine
        # Scored before by this very chunk, whose file was lost.
        again = {digest for digest, one in known.items() if one.chunk == self.span.chunk}
        rows = [_fill_row(row, results) for row in self.rows]
        figures = _count(self.rows, rows, self.span.first_row, first=mine.keys() | again)
        spent = store.get_num_computed_tokens(self.span.chunk)
        figures.num_computed_tokens = scored.num_computed_tokens if spent is None else spent
        return ChunkResult(self.span, rows, figures), mine


def split_into_chunks(rows: Iterable[Row], max_rows: int) -> Iterator[list[Row]]:
    """Rows in chunks: up to `max_rows`, and no more once they have `MAX_CHUNK_BYTES` together."""
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
    """What is to be scored in some rows.

    Args:
        number: of the chunk.
        rows: at least one.
        columns: where the caller said a record's parts are.
    """
    conversations: dict[Digest, ChatJson] = {}
    parsed = tuple(_parse(row, columns, conversations) for row in rows)
    span = Span(
        chunk=number,
        first_row=rows[0].number,
        num_rows=len(rows),
        end=rows[-1].next_position,
    )
    return Chunk(span, parsed, conversations)


def submit_chunk(
    chunk: Chunk, store: DedupStore, in_flight: set[Digest], submit: Submit
) -> PendingChunk:
    """Have those conversations of a chunk scored that nobody has sent yet.

    Args:
        chunk: the next one.
        seen: has the results of the chunks that are finished.
        on_its_way: conversations of the others; gets this chunk's own.
        submit: of a carrier.
    """
    elsewhere = tuple(digest for digest in chunk.conversations if digest in in_flight)
    known = store.find([digest for digest in chunk.conversations if digest not in in_flight])
    own = {
        digest: conversation
        for digest, conversation in chunk.conversations.items()
        if digest not in in_flight and digest not in known
    }
    in_flight.update(own)
    future = submit(list(own.values())) if own else None
    return PendingChunk(chunk.span, chunk.rows, tuple(own), known, elsewhere, future)


def collect_results(chunk: Chunk, rows: Sequence[RowResults]) -> dict[Digest, Result]:
    """The result of each conversation of a chunk that is done."""
    return {
        mark: result
        for parsed, row in zip(chunk.rows, rows, strict=True)
        for mark, result in zip(parsed.conversations, row.results, strict=True)
        if isinstance(mark, bytes)
    }


def _parse(row: Row, columns: Columns, conversations: dict[Digest, ChatJson]) -> ParsedRow:
    work = try_parse_record(row.record, columns)
    if work.error:
        return ParsedRow(work.kind, (), work.error)
    marks: list[Digest | ScoreError] = []
    for conversation in work.conversations:
        if isinstance(conversation, ScoreError):
            marks.append(conversation)
            continue
        digest = compute_digest(conversation)
        conversations.setdefault(digest, conversation)
        marks.append(digest)
    return ParsedRow(work.kind, tuple(marks), warnings=work.warnings)


def _fill_row(row: ParsedRow, results: dict[Digest, Result]) -> RowResults:
    if row.error:
        return RowResults(row.kind, [], row.error)
    found = [c if isinstance(c, ScoreError) else results[c] for c in row.conversations]
    return RowResults(row.kind, found, warnings=row.warnings)


def _count(
    parsed: Iterable[ParsedRow], rows: list[RowResults], first_row: int, *, first: set[Digest]
) -> Summary:
    """Figures of a chunk but for what it cost.

    Args:
        parsed: its rows as they were read.
        rows: the same, scored.
        first_row: number of the first of them.
        first: conversations that no chunk before has.
    """
    figures = Summary(num_rows=len(rows))
    unmet = set(first)
    for number, (before, row) in enumerate(zip(parsed, rows, strict=True), first_row):
        if failure := row.failure:
            figures.add_error(number, failure)
        figures.add_warnings(number, row.all_warnings)
        for mark, result in zip(before.conversations, row.results, strict=True):
            if isinstance(result, Reward):
                figures.num_conversations += 1
                figures.num_tokens += result.num_tokens
                if mark not in unmet:
                    figures.num_repeated_tokens += result.num_tokens
            if isinstance(mark, bytes):
                unmet.discard(mark)
    return figures
