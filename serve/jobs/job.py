"""A job from its first row to its output: start reading here.

Rows are read in chunks, a carrier scores several of them at a time, and each that is done is kept
on disk in order. When all are, the input is read once more and goes out with the results. Whatever
ends a run, the next one begins behind the last chunk that is whole.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rm_core import RewardError, Truncation
from serve.jobs.carriers.carrier import Carrier
from serve.jobs.chunk_files import DamagedError, Finished, RowResults, write_chunk
from serve.jobs.chunks import Pending, cut, digests_of, parse_chunk
from serve.jobs.columns import AS_USUAL, Columns
from serve.jobs.durable import is_no_room
from serve.jobs.errors import BadRowError, DiskFullError, JobError, JobStoppedError
from serve.jobs.folder import JobFolder, Prefix
from serve.jobs.inputs.source import Source
from serve.jobs.manifest import Manifest
from serve.jobs.progress import Progress
from serve.jobs.seen import Digest, SeenStore
from serve.jobs.stopping import Stopping

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job was asked to do.

    Attributes:
        source: its input.
        output: where the rows with their rewards go.
        truncation: what to do with what is too long.
        columns: where the parts of a record are.
        limit: how many rows to take; None for all.
        chunk_rows: most rows of a chunk.
        fail_fast: whether to end at the first row with an error.
    """

    source: Source
    output: Path
    truncation: Truncation = "error"
    columns: Columns = AS_USUAL
    limit: int | None = None
    chunk_rows: int = 2_000
    fail_fast: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Those that decide the results or where chunks are cut: they are pinned."""
        named = asdict(self.columns)
        return {
            "truncation": self.truncation,
            "limit": self.limit,
            "chunk_rows": self.chunk_rows,
            **{f"{name}_column": list(v) if isinstance(v, tuple) else v for name, v in named.items()},
        }


class Scoring:
    """The chunks of a job that are not done yet, through a carrier.

    Args:
        plan: of the job.
        manifest: what it is pinned to.
        folder: where chunks are kept.
        prefix: those that are done; grows.
        carrier: scores.
    """

    def __init__(
        self, plan: Plan, manifest: Manifest, folder: JobFolder, prefix: Prefix, carrier: Carrier
    ) -> None:
        self._plan = plan
        self._manifest = manifest
        self._folder = folder
        self._prefix = prefix
        self._carrier = carrier
        self._on_its_way: set[Digest] = set()

    def run(self, progress: Progress, stopping: Stopping) -> None:
        """Score until all chunks are done.

        Raises:
            JobStoppedError: it was asked to stop.
            BadRowError: a row has an error, and that is to end the job.
            DiskFullError: there is no room for results.
            RewardError: the carrier failed.
        """
        job, prefix = self._manifest.job, self._prefix
        seen = self._folder.open_seen(job, prefix.num_chunks, self._rebuild)
        pending: deque[Pending] = deque()
        started = time.monotonic()
        try:
            chunks = self._chunks()
            while True:
                self._fill(pending, chunks, seen, stopping)
                if not pending or not self._wait(pending, progress, stopping):
                    break
                one = pending.popleft()
                finished, mine = one.finish(seen)
                self._require_good(finished)
                now = time.monotonic()
                finished.figures.seconds, started = now - started, now
                seen.add(one.span.chunk, mine, finished.figures.num_computed_tokens)
                write_chunk(self._folder.chunks, job, finished)
                self._on_its_way.difference_update(one.own)
                prefix.add(finished.span, finished.figures)
                progress.add(finished.span.num_bytes, finished.figures)
        except DamagedError as error:
            self._folder.discard_seen()
            raise JobError(
                f"the store of scored conversations is damaged ({error}); run the same command "
                "again, which makes it again"
            ) from error
        finally:
            for one in pending:
                if one.future:
                    one.future.cancel()
            seen.close()
        if stopping.asked is not None:
            raise JobStoppedError("stopped as asked")

    def _chunks(self) -> Iterator[Pending]:
        """Chunks behind those that are done, not yet sent."""
        limit = self._plan.limit
        start = self._prefix.end
        rows = self._plan.source.rows(start)
        if limit is not None:
            rows = islice(rows, max(0, limit - start.row))
        first = self._prefix.num_chunks
        for number, some in enumerate(cut(rows, self._plan.chunk_rows), start=first):
            yield parse_chunk(number, some, self._plan.columns)

    def _fill(
        self,
        pending: deque[Pending],
        chunks: Iterator[Any],
        seen: SeenStore,
        stopping: Stopping,
    ) -> None:
        while len(pending) < self._carrier.capacity and stopping.asked is None:
            chunk = next(chunks, None)
            if chunk is None:
                return
            pending.append(self._send(chunk, seen))
