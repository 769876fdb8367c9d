"""The chunks of a job that are not done, through a carrier, each kept on disk as it is finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import islice

from rm_core.inputs.conversations import ChatJson
from serve.errors import BadRowError, JobError, JobStoppedError
from serve.jobs.chunk_files import DamagedError, Finished, write_chunk
from serve.jobs.chunks import Chunk, Pending, cut, parse_chunk, results_of, send
from serve.jobs.dedup_store import Digest, SeenStore
from serve.jobs.executors.base import Carrier, Scored
from serve.jobs.inputs.source import START, Position, Row
from serve.jobs.progress import Progress
from serve.jobs.shutdown import Stopping
from serve.jobs.spec import Plan
from serve.jobs.state import JobFolder, Prefix

_POLL_S = 0.2


@dataclass(slots=True)
class Scoring:
    """One run through what is left of a job.

    Attributes:
        plan: of the job.
        job: digest of what the job is pinned to.
        folder: where chunks are kept.
        prefix: those that are done; grows.
        progress: is told.
        stopping: says when to stop.
    """

    plan: Plan
    job: str
    folder: JobFolder
    prefix: Prefix
    progress: Progress
    stopping: Stopping
    _on_its_way: set[Digest] = field(default_factory=set)
    _finished_at: float = 0.0
    _gives_up_at: float | None = None

    def run(self, carrier: Carrier) -> None:
        """Score until all chunks are done.

        Raises:
            JobStoppedError: it was asked to stop.
            BadRowError: a row has an error, and that is to end the job.
            DiskFullError: there is no room for results.
            RewardError: the carrier failed.
        """
        seen = self.folder.open_seen(self.job, self.prefix.num_chunks, self._rebuild)
        pending: deque[Pending] = deque()
        self._finished_at = time.monotonic()
        try:
            self._run(carrier, seen, pending)
        except DamagedError as error:
            self.folder.discard_seen()
            raise JobError(
                f"the store of scored conversations is damaged ({error}); run the same command "
                "again, which makes it again"
            ) from error
        finally:
            _cancel(pending)
            seen.close()
        if self.stopping.asked is not None:
            raise JobStoppedError("stopped as asked")

    def _run(self, carrier: Carrier, seen: SeenStore, pending: deque[Pending]) -> None:
        def submit(conversations: Sequence[ChatJson]) -> Future[Scored]:
            return carrier.submit(conversations, self.plan.truncation)

        chunks = self._chunks(self.prefix.end, self.prefix.num_chunks)
        while True:
            while len(pending) < carrier.capacity and self.stopping.asked is None:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                pending.append(send(chunk, seen, self._on_its_way, submit))
            if not pending or not self._wait(pending, carrier.patience_s):
                return
            self._finish(pending.popleft(), seen)

    def _wait(self, pending: deque[Pending], patience_s: float | None) -> bool:
        """Whether the first chunk has its results; not if it was cancelled or given up."""
        future = pending[0].future
        while future is not None and not future.done():
            if self.stopping.asked is not None:
                _cancel(pending)
                if patience_s is not None and self._is_over(patience_s):
                    return False
            self.progress.tick()
            wait((future,), _POLL_S)
        return future is None or not future.cancelled()

    def _is_over(self, patience_s: float) -> bool:
        """Whether so many seconds have passed since the first call."""
        now = time.monotonic()
        if self._gives_up_at is None:
            self._gives_up_at = now + patience_s
        return now >= self._gives_up_at

    def _finish(self, one: Pending, seen: SeenStore) -> None:
        finished, mine = one.finish(seen)
        if self.plan.fail_fast:
            require_good(finished)
        now = time.monotonic()
        finished.figures.seconds, self._finished_at = now - self._finished_at, now
        seen.add(one.span.chunk, mine, finished.figures.num_computed_tokens)
        write_chunk(self.folder.chunks, self.job, finished)
        self._on_its_way.difference_update(one.own)
        self.prefix.add(finished.span, finished.figures)
        self.progress.add(finished.figures)

    def _chunks(self, start: Position, number: int) -> Iterator[Chunk]:
        for index, rows in enumerate(cut(self._rows(start), self.plan.chunk_rows), number):
            yield parse_chunk(index, rows, self.plan.columns)

    def _rows(self, start: Position) -> Iterator[Row]:
        rows = self.plan.source.rows(start)
        limit = self.plan.limit
        return rows if limit is None else islice(rows, max(0, limit - start.row))

    def _rebuild(self, seen: SeenStore) -> None:
        """Fill an empty store from the input and the chunks that are done."""
        done = self.folder.finished(self.job, self.prefix.num_chunks)
        for finished, chunk in zip(done, self._chunks(START, 0), strict=False):
            results = results_of(chunk, finished.rows)
            known = seen.find(list(results))
            mine = {digest: result for digest, result in results.items() if digest not in known}
            seen.add(chunk.span.chunk, mine, finished.figures.num_computed_tokens)


def require_good(finished: Finished) -> None:
    """Return if every row of a chunk could be scored.

    Raises:
        BadRowError: names the first that could not.
    """
    for index, row in enumerate(finished.rows):
        if failure := row.failure:
            raise BadRowError(
                f"row {finished.span.first_row + index} (counted from 0): {failure.message} "
                f"({failure.code}); --fail-fast ends the job here: correct the row, or leave the "
                "option out to have the error in the output"
            )


def _cancel(pending: deque[Pending]) -> None:
    # The last first: one behind a cancelled one would be scored for nothing.
    for one in reversed(pending):
        if one.future:
            one.future.cancel()
