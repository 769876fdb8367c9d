"""The queue of one model in a gateway, and the batches that it sends to the model's replicas.

As soon as a replica is free, or about to be, it gets the next batch, formed of the sequences that
are pending at that moment, of any request; no batch waits to fill. So conversations with one prompt
meet across requests, equal conversations are scored once, and a large request is spread over all
replicas. `serve.scheduler.fair_queue` orders the sequences; `serve.scheduler.batching` decides
which of them share a batch.

The queue is in the gateway and not in front of the device for three reasons: one call a batch costs
less than one call a request; sequences of a lost replica can be sent to another one from here; and
sequences that no request waits for any longer are dropped before they are sent. A dispatcher
belongs to one event loop and uses neither threads nor Ray.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeAlias

from rm_core import RewardError, ScoreError, ScoringError
from rm_core.packing import TokenIds
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.scheduler.batching import apportion, compute_tree_size, form_mixed_batch
from serve.scheduler.fair_queue import Flow
from serve.scheduler.pending import DispatchResult, PendingPool, PendingSequence, build_report
from serve.scheduler.quarantine import MAX_CRASHES, CrashHistory, build_quarantine_error
from serve.scheduler.throughput import InFlightBatch, ThroughputEstimator
from serve.telemetry.events import Observer
from serve.worker.backends import Backend, BatchResult

logger = logging.getLogger(__name__)

BatchRunner: TypeAlias = Callable[[list[PendingSequence], float], Awaitable[None]]

# A batch is formed from the next sequences of the queue, as many as fill this many token budgets.
# That bounds how far newer sequences overtake older ones, and the time that forming a batch takes:
# 14 to 47 ms of the event loop for 4 budgets of 32,768 tokens in conversations of 50.
_LOOK_AHEAD = 4
# A replica gets its next batch this long before it is expected to be free: longer than a batch
# takes to reach it, short enough that requests which arrive meanwhile do not wait behind the batch.
_PREFETCH_S = 0.05
_BUSY_RETRY_S = 0.1


class Dispatcher:
    """Queues sequences of one model and sends them to its replicas in batches.

    Args:
        alias: alias of the model.
        backend: replicas of the model.
        observer: receives a report of every batch.
        shares_rewards: whether a sequence that several clients wait for is computed once for all of
            them, and tokens that their conversations share are counted once.

    Attributes:
        max_batch_tokens: token budget of a batch; set once the model is loaded.
    """

    def __init__(
        self, alias: str, backend: Backend, observer: Observer, shares_rewards: bool = True
    ) -> None:
        self.max_batch_tokens = 1
        self._alias = alias
        self._backend = backend
        self._observer = observer
        self._pool = PendingPool(shares_rewards)
        self._shares_rewards = shares_rewards
        # Both go before all other sequences: batches that are sent as they are, such as halves of a
        # failed one; and suspects, which were with a lost replica and are scored one at a time.
        self._retry_batches: deque[list[PendingSequence]] = deque()
        self._suspects: list[PendingSequence] = []
        self._suspects_are_running = False
        self._crash_history = CrashHistory()
        self._throughput = ThroughputEstimator(_PREFETCH_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        # A batch belongs to no request: in the context of one, Serve would cancel a batch of many
        # requests when the client of that one disconnects.
        self._context = contextvars.Context()
        self._numbers = count()

    @property
    def queued_tokens(self) -> int:
        """Tokens of the pending sequences; those in flight are not counted."""
        return self._pool.num_tokens

    @property
    def num_waiting(self) -> int:
        """Number of distinct pending conversations."""
        return self._pool.num_waiting

    @property
    def num_in_flight(self) -> int:
        """Number of batches that were sent and have not returned."""
        return len(self._tasks)

    @property
    def num_replicas(self) -> int:
        """Number of replicas that are up."""
        return self._backend.num_replicas

    @property
    def tokens_by_client(self) -> Mapping[str, int]:
        """Tokens that each client asked for and has not received; only clients with such tokens."""
        return self._pool.tokens_by_client

    def should_wait(self, flow: Flow[PendingSequence], max_client_tokens: int) -> bool:
        """Return whether a request should wait for rewards before it submits more sequences.

        Its pending sequences then fill all replicas, and leave a choice for each batch.

        Args:
            flow: flow of the request.
            max_client_tokens: maximum number of queued tokens of its client.
        """
        if not flow.num_tokens:
            return False
        budgets = _LOOK_AHEAD * (2 * self._num_devices + 2)
        is_enough = flow.num_tokens >= budgets * self.max_batch_tokens
        return is_enough or self._pool.tokens_by_client[flow.client] >= max_client_tokens

    def estimate_seconds(self, num_tokens: int) -> float | None:
        """Estimate how long all replicas together take for so many tokens; None without data."""
        return self._throughput.estimate_seconds(num_tokens, self._num_devices)

    @contextmanager
    def open_flow(self, client: str, priority: int) -> Iterator[Flow[PendingSequence]]:
        """Open the flow of a request, and discard what is left of it at the end of the `with`."""
        flow: Flow[PendingSequence] = Flow(client, priority)
        try:
            yield flow
        finally:
            self._pool.discard(flow)

    async def compute_rewards(
        self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]
    ) -> DispatchResult:
        """Compute the rewards of sequences, none of them empty, in order.

        If the call is cancelled, its pending sequences are dropped.

        Raises:
            RewardError: none of the model's replicas will answer.
        """
        request = self._pool.add(flow, sequences)
        self._mark_known_suspects(flow, sequences)
        if request.num_missing:
            self._schedule_soon()
        try:
            await request.future
        finally:
            if request.num_missing:
                self._pool.cancel(request)
        return request.build_result()

    @property
    def _num_devices(self) -> int:
        """At least one: a batch that is sent while no replica is up waits for the first one."""
        return max(1, self._backend.num_replicas)

    def _schedule_soon(self, delay_s: float = 0.0) -> None:
        """Look for free replicas after the events that are due at this moment."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._schedule, context=self._context)

    def _schedule(self) -> None:
        """Send batches to free replicas until no replica is free or no sequence is pending."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._pool.num_tokens:
            wait_s = self._throughput.estimate_wait(now, self._num_devices)
            if wait_s is None:  # the next result schedules again
                return
            if wait_s > 0:
                self._schedule_soon(wait_s)
                return
            if suspects := self._take_suspects():
                self._suspects_are_running = True
                self._send(suspects, self._run_one_by_one, now)
            elif batch := self._form_next_batch():
                self._send(batch, self._run_together, now)
            else:
                return
        # No request waits for these any longer.
        self._retry_batches.clear()
        self._suspects.clear()

    def _take_suspects(self) -> list[PendingSequence]:
        if self._suspects_are_running:
            return []
        suspects, self._suspects = self._suspects, []
        return [entry for entry in suspects if entry.is_pending]

    def _form_next_batch(self) -> list[PendingSequence]:
        while self._retry_batches:
            if retry := [entry for entry in self._retry_batches.popleft() if entry.is_pending]:
                return retry
        pending = self._pool.peek(_LOOK_AHEAD * self.max_batch_tokens, exclude=self._suspects)
        if not pending:
            return []
        half = self.max_batch_tokens // 2
        small = [
            sequence
            for sequence, entries in pending.items()
            if any(entry.requests[0].flow.num_tokens <= half for entry in entries)
        ]
        batch = form_mixed_batch(small, list(pending), self.max_batch_tokens)
        return [entry for sequence in batch.sequences for entry in pending[sequence]]

    def _send(self, batch: list[PendingSequence], run: BatchRunner, now: float) -> None:
        self._pool.mark_dispatched(batch, now)
        num_tokens = _compute_tree_size(batch)
        in_flight = self._throughput.begin(now, num_tokens, self._num_devices)
        task = asyncio.get_running_loop().create_task(self._supervise(batch, run, in_flight, now))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(
        self, batch: list[PendingSequence], run: BatchRunner, in_flight: InFlightBatch, now: float
    ) -> None:
        try:
            await run(batch, now)
        finally:
            self._throughput.end(in_flight)
            # Only a cancellation leaves entries running; every other outcome has handled them all.
            if left := [entry for entry in batch if entry.is_running]:
                self._retry([left])
            self._schedule_soon()

    async def _run_together(self, batch: list[PendingSequence], now: float) -> None:
        sequences = [entry.sequence for entry in batch]
        try:
            result = await self._backend.run_batch(sequences, self._pool.num_tokens)
            self._finish(batch, result, now)
        except ReplicaLostError as error:
            self._handle_lost_replica(batch, error)
        except ReplicaBusyError:
            self._observer.record_retry(self._alias, "overloaded", len(batch))
            await asyncio.sleep(_BUSY_RETRY_S)
            self._retry([batch])
        except RewardError as error:
            self._pool.fail(batch, error)
        # Boundary of the batch: its requests get the failure, and the dispatcher goes on.
        except Exception as error:
            self._handle_failure(batch, error)

    async def _run_one_by_one(self, suspects: list[PendingSequence], now: float) -> None:
        """Score suspects one at a time, so that a crash can be attributed to one conversation."""
        left, has_begun = deque(suspects), False
        sequences = [entry.sequence for entry in suspects]
        try:
            async for result in self._backend.run_one_by_one(sequences, self._pool.num_tokens):
                if result is None:
                    has_begun = True
                else:
                    self._finish([left[0]], result, now)
                    left.popleft()
        except ReplicaLostError as error:
            if has_begun and left:
                self._handle_lost_replica([left.popleft()], error)
        except ReplicaBusyError:
            await asyncio.sleep(_BUSY_RETRY_S)
        except RewardError as error:
            self._pool.fail(left, error)
            left.clear()
        except Exception as error:  # as above
            if left:
                self._handle_failure([left.popleft()], error)
        finally:
            self._suspects_are_running = False
            self._suspect(left)

    def _finish(self, batch: list[PendingSequence], result: BatchResult, now: float) -> None:
        assert len(result.batch.rewards) == len(batch)
        self._throughput.observe(result.batch.num_computed_tokens, result.inference_s)
        times = {"sent_at": now, "elapsed_s": asyncio.get_running_loop().time() - now}
        report = build_report(self._alias, batch, result, self.max_batch_tokens, **times)
        self._observer.record_batch(report)
        number = next(self._numbers)
        for request in {request: None for entry in batch for request in entry.requests}:
            request.fingerprints.add(result.fingerprint)
            request.batch_seconds[number] = result.inference_s
        self._apportion_computed_tokens(batch, result.batch.num_computed_tokens)
        for entry, reward in zip(batch, result.batch.rewards, strict=True):
            self._crash_history.forget(entry.sequence)
            self._pool.resolve(entry, reward)

    def _apportion_computed_tokens(self, batch: list[PendingSequence], num_computed: int) -> None:
        """Attribute computed tokens to requests; a client learns nothing of others in its batch."""
        by_owner: dict[str, list[PendingSequence]] = {}
        for entry in batch:
            by_owner.setdefault(entry.owner, []).append(entry)
        for entries in by_owner.values():
            is_alone = self._shares_rewards or len(by_owner) == 1
            total = num_computed if is_alone else _compute_tree_size(entries)
            shares = apportion(total, [len(entry.sequence) for entry in entries])
            for entry, share in zip(entries, shares, strict=True):
                if entry.requests:
                    entry.requests[0].num_computed_tokens += share

    def _mark_known_suspects(
        self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]
    ) -> None:
        """Treat sequences that were with a lost replica as suspects when they are sent again."""
        for entry in self._pool.find_pending(flow, sequences) if self._crash_history else ():
            if (num_crashes := self._crash_history.count(entry.sequence)) >= MAX_CRASHES:
                self._pool.mark_dispatched([entry], asyncio.get_running_loop().time())
                self._quarantine(entry)
            elif num_crashes and entry not in self._suspects:
                self._suspects.append(entry)

    def _handle_lost_replica(self, batch: list[PendingSequence], error: ReplicaLostError) -> None:
        """Send the entries of a lost batch again, or quarantine those that were lost too often."""
        logger.warning(
            "%s: %d conversations were with a lost replica: %s",
            self._alias,
            len(batch),
            error.detail,
        )
        suspects = []
        for entry in batch:
            num_crashes = self._crash_history.add(entry.sequence, error.replica)
            suspects.append(entry) if num_crashes < MAX_CRASHES else self._quarantine(entry)
        if suspects:
            self._observer.record_retry(self._alias, error.reason, len(suspects))
            self._suspect(suspects)

    def _quarantine(self, entry: PendingSequence) -> None:
        self._observer.record_abandonment(self._alias, 1)
        self._pool.resolve(entry, build_quarantine_error(entry.sequence))

    def _suspect(self, entries: Collection[PendingSequence]) -> None:
        self._pool.requeue(entries)
        self._suspects += entries

    def _handle_failure(self, batch: list[PendingSequence], error: Exception) -> None:
        """Retry a failed batch in halves, until the conversation that fails is alone."""
        logger.error("a batch of %d conversations failed", len(batch), exc_info=error)
        if len(batch) > 1:
            middle = len(batch) // 2
            self._retry([batch[:middle], batch[middle:]])
            return
        failure = ScoringError(
            f"scoring failed on this conversation ({type(error).__name__}); the service's log has "
            "the details"
        )
        self._pool.resolve(batch[0], ScoreError.from_exception(failure))

    def _retry(self, batches: list[list[PendingSequence]]) -> None:
        for batch in batches:
            self._pool.requeue(batch)
        self._retry_batches.extend(batches)


def _compute_tree_size(batch: Collection[PendingSequence]) -> int:
    return compute_tree_size(sorted({entry.sequence for entry in batch}))
