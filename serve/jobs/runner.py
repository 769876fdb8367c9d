"""Score the rows of a job, chunk after chunk; each finished chunk is saved at once.

The input alone decides where a chunk ends and what is scored for it: a conversation belongs to the
first row of the job that has it, and its result is copied to all other rows. A resumed job
therefore sends the same calls to the executor, and its output is equal to the last bit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from itertools import islice

from rm_core import Reward, ScoreError, aggregate
from rm_core.config import Kind
from serve.errors import BadRowError, JobStoppedError
from serve.jobs.executors.base import Executor, ScoreBatchResult
from serve.jobs.inputs.image_files import ImageFiles
from serve.jobs.inputs.image_references import restore_images
from serve.jobs.inputs.items import ScoringInput, compute_digest, list_pairs, list_solutions
from serve.jobs.inputs.rows import Row
from serve.jobs.progress import Progress
from serve.jobs.record_reader import ParsedRecord, try_parse_record
from serve.jobs.reward_cache import RewardCache
from serve.jobs.row_results import Result, RowResults
from serve.jobs.spec import JobSpec
from serve.jobs.store import Digest, JobStore
from serve.jobs.summary import Summary
from serve.shutdown import GracefulShutdown

MAX_CHUNK_BYTES = 8 * 2**20
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are scored together.

    Attributes:
        first_row: number of the first row.
        rows: each row's record, and the digest of each of its conversations, or a result that needs
            no scoring: the error of a bad conversation, in a retry also a reward.
        conversations: the distinct conversations, in the order of their first occurrence.
        num_bytes: size of the rows in the input.
    """

    first_row: int
    rows: Sequence[tuple[ParsedRecord, Sequence[Digest | Result]]]
    conversations: Mapping[Digest, ScoringInput]
    num_bytes: int

    def fill(self, results: Mapping[Digest, Result]) -> list[RowResults]:
        """Return the results of the rows, from those of all conversations."""
        return [
            RowResults(
                record.kind,
                [results[key] if isinstance(key, bytes) else key for key in keys],
                record.error,
                record.warnings,
            )
            for record, keys in self.rows
        ]

    def summarize(self, rows: Sequence[RowResults], new: Iterable[Digest]) -> Summary:
        """Return the summary of the rows of `fill`, without computed tokens and seconds.

        Args:
            rows: results of the rows.
            new: conversations that no earlier chunk has.
        """
        summary, unseen = Summary(), set(new)
        for index, ((_, keys), row) in enumerate(zip(self.rows, rows, strict=True)):
            summary.add_row(self.first_row + index, row)
            for key, result in zip(keys, row.results, strict=True):
                if isinstance(result, Reward) and key not in unseen:
                    summary.num_repeated_tokens += result.num_tokens
                if isinstance(key, bytes):
                    unseen.discard(key)
        return summary


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A submitted chunk.

    Attributes:
        chunk: the chunk.
        cached: results of those conversations that occur first in this chunk, and that the reward
            cache has.
        submitted: the other conversations that occur first in this chunk.
        future: results of `submitted`; None if there are none.
    """

    chunk: Chunk
    cached: Mapping[Digest, Result]
    submitted: Sequence[Digest]
    future: Future[ScoreBatchResult] | None


@dataclass(slots=True)
class ChunkRunner:
    """One run over the remaining chunks of a job; see `serve.jobs.job.Job` for the attributes.

    `kind` is the kind of the model, `max_image_bytes` that of `read_chunks`, and `reward_cache` has
    rewards of other jobs.
    """

    spec: JobSpec
    kind: Kind
    store: JobStore
    executor: Executor
    progress: Progress
    shutdown: GracefulShutdown
    max_image_bytes: int | None = None
    reward_cache: RewardCache | None = None
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
        chunks = self._read_chunks()
        while True:
            while len(pending) < self.executor.capacity and self.shutdown.received_signal is None:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                pending.append(self._submit(chunk))
            if not pending or not self._wait(pending):
                return
            self._finish(pending.popleft())

    def _read_chunks(self) -> Iterator[Chunk]:
        first_row = self.store.summary.num_rows
        return read_chunks(self.spec, self.kind, first_row, self.max_image_bytes)

    def _find(self, digests: Iterable[Digest]) -> dict[Digest, Result]:
        """Return the results of conversations that are scored already."""
        return self.store.find(digests)

    def _save(
        self,
        chunk: Chunk,
        rows: Sequence[RowResults],
        results: Mapping[Digest, Result],
        summary: Summary,
        max_batch_tokens: int | None,
    ) -> None:
        """Save a finished chunk; `results` are those of its new conversations."""
        self.store.add_chunk(rows, results, summary, max_batch_tokens)

    def _submit(self, chunk: Chunk) -> PendingChunk:
        """Submit the conversations of a chunk that neither an earlier chunk nor the cache has."""
        unseen = [digest for digest in chunk.conversations if digest not in self._in_flight]
        known_results = self._find(unseen)
        own_digests = [digest for digest in unseen if digest not in known_results]
        self._in_flight.update(own_digests)
        cached = self.reward_cache.find(own_digests) if self.reward_cache else {}
        submitted = [digest for digest in own_digests if digest not in cached]
        conversations = [chunk.conversations[digest] for digest in submitted]
        future = (
            self.executor.submit(conversations, self.spec.truncation) if conversations else None
        )
        return PendingChunk(chunk, cached, submitted, future)

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
        scored_results = dict(zip(pending.submitted, scored.results, strict=True))
        if self.reward_cache:
            # Before the chunk is saved: a chunk that is saved is never scored again.
            self.reward_cache.add(scored_results)
        new_results = {
            digest: self._aggregate(result)
            for digest, result in {**pending.cached, **scored_results}.items()
        }
        repeated = [digest for digest in chunk.conversations if digest not in new_results]
        rows = chunk.fill(self._find(repeated) | new_results)
        if self.spec.fail_fast:
            raise_on_error(rows, chunk.first_row)
        summary = chunk.summarize(rows, new_results)
        summary.num_computed_tokens = scored.num_computed_tokens
        summary.num_cached_tokens = scored.num_cached_tokens
        rewards = [result for result in pending.cached.values() if isinstance(result, Reward)]
        summary.num_reused_rewards = len(rewards)
        summary.num_reused_tokens = sum(reward.num_tokens for reward in rewards)
        now = time.monotonic()
        summary.seconds, self._finished_at = now - self._finished_at, now
        self._save(chunk, rows, new_results, summary, scored.max_batch_tokens)
        self._in_flight.difference_update(new_results)
        self.progress.add(summary)

    def _aggregate(self, result: Result) -> Result:
        """Return a result of a step model with the reward that the job asks for."""
        aggregation = self.spec.aggregation
        if aggregation is None or isinstance(result, ScoreError):
            return result
        return replace(result, reward=aggregate(result.step_rewards, aggregation))


def read_chunks(
    spec: JobSpec, kind: Kind, first_row: int = 0, max_image_bytes: int | None = None
) -> Iterator[Chunk]:
    """Yield the chunks of a job from a row on, which is the first one of a chunk.

    A chunk ends at `spec.chunk_rows` rows or at `MAX_CHUNK_BYTES` of input, in which a row counts
    once for each pair that a judge reads of it, and with the files of images that it names.

    Args:
        spec: specification of the job.
        kind: kind of the model.
        first_row: number of the first row.
        max_image_bytes: maximum size of an image's file; None for a model that reads only text.
    """
    num_left = None if spec.limit is None else max(0, spec.limit - first_row)
    rows: list[tuple[Row, ParsedRecord]] = []
    num_bytes = 0
    for row in islice(spec.source.iter_rows(first_row), num_left):
        record = parse_row(row, spec, kind, max_image_bytes)
        rows.append((row, record))
        num_bytes += row.size * (len(record.conversations) or 1 if kind == "judge" else 1)
        num_bytes += record.num_image_bytes
        if len(rows) == spec.chunk_rows or num_bytes >= MAX_CHUNK_BYTES:
            yield _build_chunk(rows)
            rows, num_bytes = [], 0
    if rows:
        yield _build_chunk(rows)


def _build_chunk(rows: Sequence[tuple[Row, ParsedRecord]]) -> Chunk:
    """Collect the distinct conversations of a chunk, which has at least one row."""
    parsed: list[tuple[ParsedRecord, list[Digest | Result]]] = []
    conversations: dict[Digest, ScoringInput] = {}
    for _, record in rows:
        keys: list[Digest | Result] = []
        for conversation in record.conversations:
            if isinstance(conversation, ScoreError):
                keys.append(conversation)
                continue
            keys.append(digest := compute_digest(conversation))
            conversations.setdefault(digest, conversation)
        parsed.append((record, keys))
    num_bytes = sum(row.size for row, _ in rows)
    return Chunk(rows[0][0].number, parsed, conversations, num_bytes)


def parse_row(
    row: Row, spec: JobSpec, kind: Kind, max_image_bytes: int | None = None
) -> ParsedRecord:
    """Parse a row into what the job scores of it; see `read_chunks` for the arguments."""
    record = row.record
    if spec.images:
        record = {**record, "prompt": restore_images(record["prompt"], spec.images)}
    if spec.inputs == "steps":
        return ParsedRecord("steps", tuple(list_solutions(record)))
    if spec.inputs == "pairs":
        return ParsedRecord("verdicts", tuple(list_pairs(record)))
    file = spec.source.files[row.file].location.local_path
    return try_parse_record(
        record,
        spec.columns,
        kind,
        both_orders=spec.orders != "given",
        image_files=None if max_image_bytes is None else ImageFiles(file, max_image_bytes),
    )


def raise_on_error(rows: Sequence[RowResults], first_row: int) -> None:
    """Check that every row was scored.

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


def _cancel(pending: deque[PendingChunk]) -> None:
    # In reverse: the results of a chunk after a cancelled one would be discarded.
    for chunk in reversed(pending):
        if chunk.future:
            chunk.future.cancel()
