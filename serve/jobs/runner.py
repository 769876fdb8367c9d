"""Score the rows of a job, chunk after chunk; each finished chunk is saved at once.

The input alone decides where a chunk ends and what is scored for it: a conversation belongs to the
first row of the job that has it, and its result is copied to all other rows. A resumed job
therefore sends the same calls to the executor, and its output is equal to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import ChatJson
from serve.errors import BadRowError, JobStoppedError
from serve.jobs.columns import Columns
from serve.jobs.executors.base import Executor, ScoreBatchResult
from serve.jobs.inputs.rows import Row
from serve.jobs.progress import Progress
from serve.jobs.record_schema import RecordKind, try_parse_record
from serve.jobs.spec import JobSpec
from serve.jobs.store import Digest, JobStore, Result, RowResults
from serve.jobs.summary import Summary
from serve.shutdown import GracefulShutdown

MAX_CHUNK_BYTES = 8 * 2**20
_POLL_S = 0.2

# Keys are not sorted: templates render functions and their arguments in the order of the keys.
_canonical = json.JSONEncoder(separators=(",", ":")).encode


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
        first_row: number of the first row.
        rows: the parsed rows, `[num_rows]`, at least one.
        conversations: the distinct conversations, in the order of their first occurrence.
    """

    first_row: int
    rows: tuple[ParsedRow, ...]
    conversations: dict[Digest, ChatJson]


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A submitted chunk whose results are pending.

    Attributes:
        chunk: the chunk.
        own_digests: conversations that occur first in this chunk, and that were submitted with it.
        future: results of `own_digests`; None if there are none.
    """

    chunk: Chunk
    own_digests: tuple[Digest, ...]
    future: Future[ScoreBatchResult] | None


@dataclass(slots=True)
class ChunkRunner:
    """One run over the remaining chunks of a job.

    Attributes:
        spec: specification of the job.
        store: state of the job.
        executor: scores the conversations.
        progress: receives the progress.
        shutdown: tells when to stop.
    """

    spec: JobSpec
    store: JobStore
    executor: Executor
    progress: Progress
    shutdown: GracefulShutdown
    _in_flight: set[Digest] = field(default_factory=set)
    _finished_at: float = 0.0
    _drain_deadline: float | None = None

    def run(self) -> None:
        """Score until all chunks are finished.

        Raises:
            JobStoppedError: a signal asked the job to stop.
            BadRowError: a row has an error, and the job has `fail_fast`.
            RewardError: the executor failed.
        """
        pending: deque[PendingChunk] = deque()
        self._finished_at = time.monotonic()
        try:
            self._run(pending)
        finally:
            _cancel(pending)
        if self.shutdown.received_signal is not None:
            raise JobStoppedError("stopped by a signal")

    def _run(self, pending: deque[PendingChunk]) -> None:
        chunks = self._chunks()
        while True:
            while len(pending) < self.executor.capacity and self.shutdown.received_signal is None:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                pending.append(self._submit(chunk))
            if not pending or not self._wait(pending):
                return
            self._finish(pending.popleft())

    def _chunks(self) -> Iterator[Chunk]:
        first_row = self.store.summary.num_rows
        limit = self.spec.limit
        num_left = None if limit is None else max(0, limit - first_row)
        rows = islice(self.spec.source.iter_rows(first_row), num_left)
        for chunk_rows in split_into_chunks(rows, self.spec.chunk_rows):
            yield parse_chunk(chunk_rows, self.spec.columns)

    def _submit(self, chunk: Chunk) -> PendingChunk:
        """Submit the conversations of a chunk that no earlier chunk has."""
        unseen = [digest for digest in chunk.conversations if digest not in self._in_flight]
        known_results = self.store.find(unseen)
        own_digests = tuple(digest for digest in unseen if digest not in known_results)
        self._in_flight.update(own_digests)
        conversations = [chunk.conversations[digest] for digest in own_digests]
        future = (
            self.executor.submit(conversations, self.spec.truncation) if conversations else None
        )
        return PendingChunk(chunk, own_digests, future)

    def _wait(self, pending: deque[PendingChunk]) -> bool:
        """Wait for the results of the first chunk; return False if it was cancelled or given up."""
        future = pending[0].future
        while future is not None and not future.done():
            if self.shutdown.received_signal is not None:
                _cancel(pending)
                if self._is_drain_over():
                    return False
            self.progress.tick()
            wait((future,), _POLL_S)
        return future is None or not future.cancelled()

    def _is_drain_over(self) -> bool:
        """Return whether the executor's `drain_timeout_s` has passed since the first call."""
        if self.executor.drain_timeout_s is None:
            return False
        now = time.monotonic()
        if self._drain_deadline is None:
            self._drain_deadline = now + self.executor.drain_timeout_s
        return now >= self._drain_deadline

    def _finish(self, pending: PendingChunk) -> None:
        """Fill the results of a chunk into its rows, and save it."""
        chunk = pending.chunk
        scored = pending.future.result() if pending.future else ScoreBatchResult([], 0)
        new_results: dict[Digest, Result] = dict(
            zip(pending.own_digests, scored.results, strict=True)
        )
        repeated = [digest for digest in chunk.conversations if digest not in new_results]
        results = self.store.find(repeated) | new_results
        rows = [_fill_row(row, results) for row in chunk.rows]
        if self.spec.fail_fast:
            raise_on_error(rows, chunk.first_row)
        summary = _count(chunk, rows, new=set(new_results))
        summary.num_computed_tokens = scored.num_computed_tokens
        summary.num_cached_tokens = scored.num_cached_tokens
        now = time.monotonic()
        summary.seconds, self._finished_at = now - self._finished_at, now
        self.store.add_chunk(rows, new_results, summary)
        self._in_flight.difference_update(pending.own_digests)
        self.progress.add(summary)


def compute_digest(conversation: ChatJson) -> Digest:
    """Return a digest of 16 bytes, equal for conversations that every template renders equally."""
    return hashlib.blake2b(_canonical(conversation).encode(), digest_size=16).digest()


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


def parse_chunk(rows: list[Row], columns: Columns) -> Chunk:
    """Parse the rows of a chunk and collect its distinct conversations.

    Args:
        rows: rows of the chunk, at least one.
        columns: columns that the caller named.
    """
    conversations: dict[Digest, ChatJson] = {}
    parsed = tuple(_parse(row, columns, conversations) for row in rows)
    return Chunk(rows[0].number, parsed, conversations)


def raise_on_error(rows: Sequence[RowResults], first_row: int) -> None:
    """Check that every row was scored.

    Args:
        rows: results of consecutive rows.
        first_row: number of the first one.

    Raises:
        BadRowError: a row has an error; the message names the first one.
    """
    for number, row in enumerate(rows, first_row):
        if failure := row.failure:
            raise BadRowError(
                f"row {number} (counted from 0): {failure.message} ({failure.code}); --fail-fast "
                "stops the job here: correct the row, or leave the option out to get the error in "
                "the output"
            )


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
    filled = [
        digest_or_error if isinstance(digest_or_error, ScoreError) else results[digest_or_error]
        for digest_or_error in row.conversations
    ]
    return RowResults(row.kind, filled, row.error, row.warnings)


def _count(chunk: Chunk, rows: list[RowResults], *, new: set[Digest]) -> Summary:
    """Return the summary of a chunk, without computed tokens and seconds.

    Args:
        chunk: the chunk.
        rows: the results of its rows.
        new: digests of conversations that no earlier chunk has; emptied.
    """
    summary = Summary(num_rows=len(rows))
    for number, (parsed_row, row) in enumerate(zip(chunk.rows, rows, strict=True), chunk.first_row):
        if failure := row.failure:
            summary.add_error(number, failure)
        summary.add_warnings(number, row.all_warnings)
        for digest, result in zip(parsed_row.conversations, row.results, strict=True):
            if isinstance(result, Reward):
                summary.num_conversations += 1
                summary.num_tokens += result.num_tokens
                if digest not in new:
                    summary.num_repeated_tokens += result.num_tokens
            if isinstance(digest, bytes):
                new.discard(digest)
    return summary


def _cancel(pending: deque[PendingChunk]) -> None:
    # In reverse: the results of a chunk after a cancelled one would be discarded.
    for chunk in reversed(pending):
        if chunk.future:
            chunk.future.cancel()
