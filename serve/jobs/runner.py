"""Score the remaining chunks of a job with an executor; each finished chunk is saved to disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import islice

from rm_core.inputs.conversations import ChatJson
from serve.errors import BadRowError, JobError, JobStoppedError
from serve.jobs.chunk_files import ChunkResult, CorruptStateError, write_chunk
from serve.jobs.chunks import (
    Chunk,
    PendingChunk,
    collect_results,
    parse_chunk,
    split_into_chunks,
    submit_chunk,
)
from serve.jobs.dedup_store import DedupStore, Digest
from serve.jobs.executors.base import Executor, ScoreBatchResult
from serve.jobs.inputs.rows import Row
from serve.jobs.progress import Progress
from serve.jobs.spec import JobSpec
from serve.jobs.state import CompletedChunks, JobFolder
from serve.shutdown import GracefulShutdown

_POLL_S = 0.2


@dataclass(slots=True)
class ChunkRunner:
    """One run over the remaining chunks of a job.

    Attributes:
        spec: specification of the job.
        job_id: `Manifest.job_id`.
        folder: state of the job.
        completed_chunks: finished chunks; grows while the job runs.
        progress: receives the progress.
        shutdown: tells when to stop.
    """

    spec: JobSpec
    job_id: str
    folder: JobFolder
    completed_chunks: CompletedChunks
    progress: Progress
    shutdown: GracefulShutdown
    _in_flight: set[Digest] = field(default_factory=set)
    _finished_at: float = 0.0
    _drain_deadline: float | None = None

    def run(self, executor: Executor) -> None:
        """Score until all chunks are finished.

        Raises:
            JobStoppedError: a signal asked the job to stop.
            BadRowError: a row has an error, and the job has `fail_fast`.
            DiskFullError: the disk is too full for the results.
            RewardError: the executor failed.
        """
        store = self.folder.open_dedup_store(
            self.job_id, self.completed_chunks.num_chunks, self._rebuild
        )
        pending: deque[PendingChunk] = deque()
        self._finished_at = time.monotonic()
        try:
            self._run(executor, store, pending)
        except CorruptStateError as error:
            self.folder.discard_dedup_store()
            raise JobError(
                f"the store of scored conversations is damaged ({error}); run the same command "
                "again to rebuild it"
            ) from error
        finally:
            _cancel(pending)
            store.close()
        if self.shutdown.received_signal is not None:
            raise JobStoppedError("stopped by a signal")

    def _run(self, executor: Executor, store: DedupStore, pending: deque[PendingChunk]) -> None:
        def submit(conversations: Sequence[ChatJson]) -> Future[ScoreBatchResult]:
            return executor.submit(conversations, self.spec.truncation)

        chunks = self._chunks(self.completed_chunks.end, self.completed_chunks.num_chunks)
        while True:
            while len(pending) < executor.capacity and self.shutdown.received_signal is None:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                pending.append(submit_chunk(chunk, store, self._in_flight, submit))
            if not pending or not self._wait(pending, executor.drain_timeout_s):
                return
            self._finish(pending.popleft(), store)

    def _wait(self, pending: deque[PendingChunk], drain_timeout_s: float | None) -> bool:
        """Wait for the results of the first chunk; return False if it was cancelled or given up."""
        future = pending[0].future
        while future is not None and not future.done():
            if self.shutdown.received_signal is not None:
                _cancel(pending)
                if drain_timeout_s is not None and self._is_drain_over(drain_timeout_s):
                    return False
            self.progress.tick()
            wait((future,), _POLL_S)
        return future is None or not future.cancelled()

    def _is_drain_over(self, drain_timeout_s: float) -> bool:
        """Return whether `drain_timeout_s` has passed since the first call of this method."""
        now = time.monotonic()
        if self._drain_deadline is None:
            self._drain_deadline = now + drain_timeout_s
        return now >= self._drain_deadline

    def _finish(self, pending: PendingChunk, store: DedupStore) -> None:
        result, new_results = pending.finish(store)
        if self.spec.fail_fast:
            raise_on_error(result)
        now = time.monotonic()
        result.summary.seconds, self._finished_at = now - self._finished_at, now
        store.add(pending.span.chunk, new_results, result.summary.num_computed_tokens)
        write_chunk(self.folder.chunks_folder, self.job_id, result)
        self._in_flight.difference_update(pending.own_digests)
        self.completed_chunks.add(result.span, result.summary)
        self.progress.add(result.summary)

    def _chunks(self, start: int, number: int) -> Iterator[Chunk]:
        for index, rows in enumerate(
            split_into_chunks(self._rows(start), self.spec.chunk_rows), number
        ):
            yield parse_chunk(index, rows, self.spec.columns)

    def _rows(self, start: int) -> Iterator[Row]:
        rows = self.spec.source.iter_rows(start)
        limit = self.spec.limit
        return rows if limit is None else islice(rows, max(0, limit - start))

    def _rebuild(self, store: DedupStore) -> None:
        """Fill an empty store from the input and the finished chunks."""
        chunk_results = self.folder.read_chunks(self.job_id, self.completed_chunks.num_chunks)
        for chunk_result, chunk in zip(chunk_results, self._chunks(0, 0), strict=False):
            results = collect_results(chunk, chunk_result.rows)
            known_results = store.find(list(results))
            new_results = {
                digest: result for digest, result in results.items() if digest not in known_results
            }
            store.add(chunk.span.chunk, new_results, chunk_result.summary.num_computed_tokens)


def raise_on_error(chunk: ChunkResult) -> None:
    """Check that every row of a chunk was scored.

    Raises:
        BadRowError: a row has an error; the message names the first one.
    """
    for index, row in enumerate(chunk.rows):
        if failure := row.failure:
            raise BadRowError(
                f"row {chunk.span.first_row + index} (counted from 0): {failure.message} "
                f"({failure.code}); --fail-fast stops the job here: correct the row, or leave the "
                "option out to get the error in the output"
            )


def _cancel(pending: deque[PendingChunk]) -> None:
    # In reverse: the results of a chunk after a cancelled one would be discarded.
    for chunk in reversed(pending):
        if chunk.future:
            chunk.future.cancel()
