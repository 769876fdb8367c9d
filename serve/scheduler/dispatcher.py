"""The queue of one model, in the gateway: what all requests wait for, a batch at a time out of it.

As soon as a replica is free, or about to be, it gets the next batch, made of what waits then, from
whatever request; nobody waits for a batch to fill. So conversations of one prompt come together
across requests, those that are equal are scored once, and a large request is spread over all
replicas. Whose turn it is: `serve.scheduler.fair_queue`; what goes well together:
`serve.scheduler.batching`.

It stands in the gateway, not before the device, for three reasons: one call a batch costs less
than one a request; what a lost replica had can be sent to another from here; and what nobody waits
for any more is dropped before it is sent. Lives on one event loop; no thread, no Ray.
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

# A batch is chosen from what is to be taken next, of this many budgets: it bounds by how much the
# young overtake the old, and the time that choosing takes: 14 to 47 ms of the event loop for 4
# budgets of 32,768 tokens in conversations of 50.
_LOOK_AHEAD = 4
# A replica gets its next batch this long before it is expected to be free: longer than the way
# there takes, short enough for whoever comes meanwhile not to wait behind it.
_PREFETCH_S = 0.05
_BUSY_RETRY_S = 0.1


class Dispatcher:
    """Batches for one model's replicas.

    Args:
        alias: of the model.
        backend: its replicas.
        observer: is told of every batch.
        shares_rewards: whether what several clients wait for is computed once for all of them, and
            what their conversations share is counted once.

    Attributes:
        max_batch_tokens: the budget of a batch; known once the model is loaded.
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
        # Both before all others: batches as they are, such as halves of one that failed; and what
        # was on its way through a replica that was lost, each alone.
        self._retry_batches: deque[list[PendingSequence]] = deque()
        self._suspects: list[PendingSequence] = []
        self._suspects_are_running = False
        self._crash_history = CrashHistory()
        self._throughput = ThroughputEstimator(_PREFETCH_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Batches belong to no request: in the context of one, Serve would cancel a batch of many
        # when the client of that one hangs up.
        self._context = contextvars.Context()
        self._numbers = count()

    @property
    def queued_tokens(self) -> int:
        """Tokens of what waits, without what is on its way through a replica."""
        return self._pool.num_tokens

    @property
    def num_waiting(self) -> int:
        """Distinct conversations that wait."""
        return self._pool.num_waiting

    @property
    def num_in_flight(self) -> int:
        """Batches that are on their way."""
        return len(self._tasks)

    @property
    def num_replicas(self) -> int:
        """Replicas that are up."""
        return self._backend.num_replicas

    @property
    def tokens_by_client(self) -> Mapping[str, int]:
        """Tokens that each client asked for and has not got; only of those that wait for any."""
        return self._pool.tokens_by_client

    def should_wait(self, flow: Flow[PendingSequence], max_client_tokens: int) -> bool:
        """Whether a request should wait for rewards before it asks for more.

        What waits of it then fills all replicas, and leaves a choice for each batch.

        Args:
            flow: what the request waits for.
            max_client_tokens: the share of its client.
        """
        if not flow.num_tokens:
            return False
        budgets = _LOOK_AHEAD * (2 * self._num_devices + 2)
        too_much = flow.num_tokens >= budgets * self.max_batch_tokens
        return too_much or self._pool.tokens_by_client[flow.client] >= max_client_tokens

    def estimate_seconds(self, num_tokens: int) -> float | None:
        """How long all replicas together take for so many tokens; None if nothing is known yet."""
        return self._throughput.estimate_seconds(num_tokens, self._num_devices)

    @contextmanager
    def open_flow(self, client: str, priority: int) -> Iterator[Flow[PendingSequence]]:
        """What a request waits for as a whole; see `serve.scheduler.fair_queue`."""
        flow: Flow[PendingSequence] = Flow(client, priority)
        try:
            yield flow
        finally:
            self._pool.discard(flow)

    async def compute_rewards(
        self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]
    ) -> DispatchResult:
        """Rewards of sequences, none of them empty, in order; cancelled, what waits is dropped.

        Raises:
            RewardError: none of the model's replicas will answer.
        """
        call = self._pool.add(flow, sequences)
        self._mark_known_suspects(flow, sequences)
        if call.num_missing:
            self._schedule_soon()
        try:
            await call.future
        finally:
            if call.num_missing:
                self._pool.cancel(call)
        return call.build_result()

    @property
    def _num_devices(self) -> int:
        """What is sent while no replica is up waits for the first one to come."""
        return max(1, self._backend.num_replicas)

    def _schedule_soon(self, delay_s: float = 0.0) -> None:
        """Look for free replicas, after what else arrives at this moment."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._schedule, context=self._context)

    def _schedule(self) -> None:
        """Give free replicas batches until none is free or nothing waits."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._pool.num_tokens:
            wait_s = self._throughput.estimate_wait(now, self._num_devices)
            if wait_s is None:  # the next answer wakes us
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
        # Nobody waits for these any more.
        self._retry_batches.clear()
        self._suspects.clear()

    def _take_suspects(self) -> list[PendingSequence]:
        if self._suspects_are_running:
            return []
        suspects, self._suspects = self._suspects, []
        return [entry for entry in suspects if entry.is_pending]

    def _form_next_batch(self) -> list[PendingSequence]:
        while self._retry_batches:
            if batch := [entry for entry in self._retry_batches.popleft() if entry.is_pending]:
                return batch
        waiting = self._pool.peek(_LOOK_AHEAD * self.max_batch_tokens, exclude=self._suspects)
        if not waiting:
            return []
        half = self.max_batch_tokens // 2
        small = [
            sequence
            for sequence, entries in waiting.items()
            if any(entry.requests[0].flow.num_tokens <= half for entry in entries)
        ]
        chosen = form_mixed_batch(small, list(waiting), self.max_batch_tokens)
        return [entry for sequence in chosen.sequences for entry in waiting[sequence]]

    def _send(self, batch: list[PendingSequence], run: BatchRunner, now: float) -> None:
        self._pool.mark_dispatched(batch, now)
        num_tokens = _compute_tree_size(batch)
        ticket = self._throughput.begin(now, num_tokens, self._num_devices)
        task = asyncio.get_running_loop().create_task(self._supervise(batch, run, ticket, now))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(
        self, batch: list[PendingSequence], run: BatchRunner, in_flight: InFlightBatch, now: float
    ) -> None:
        try:
            await run(batch, now)
        finally:
            self._throughput.end(in_flight)
            # After a cancellation alone; in all other cases each has been dealt with.
            if left := [entry for entry in batch if entry.is_running]:
                self._retry([left])
            self._schedule_soon()

    async def _run_together(self, batch: list[PendingSequence], now: float) -> None:
        sequences = [entry.sequence for entry in batch]
        try:
            answer = await self._backend.run_batch(sequences, self._pool.num_tokens)
            self._finish(batch, answer, now)
        except ReplicaLostError as error:
            self._handle_lost_replica(batch, error)
        except ReplicaBusyError:
            self._observer.record_retry(self._alias, "overloaded", len(batch))
            await asyncio.sleep(_BUSY_RETRY_S)
            self._retry([batch])
        except RewardError as error:
            self._pool.fail(batch, error)
        # The border of the batch: whatever happens belongs to its callers; others still wait.
        except Exception as error:
            self._handle_failure(batch, error)

    async def _run_one_by_one(self, suspects: list[PendingSequence], now: float) -> None:
        """Each alone: whichever is on the device when a replica is lost is to blame, no other."""
        left, has_begun = deque(suspects), False
        sequences = [entry.sequence for entry in suspects]
        try:
            async for answer in self._backend.run_one_by_one(sequences, self._pool.num_tokens):
                if answer is None:
                    has_begun = True
                else:
                    self._finish([left[0]], answer, now)
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
        for call in {call: None for entry in batch for call in entry.requests}:
            call.fingerprints.add(result.fingerprint)
            call.batch_seconds[number] = result.inference_s
        self._apportion_computed_tokens(batch, result.batch.num_computed_tokens)
        for entry, reward in zip(batch, result.batch.rewards, strict=True):
            self._crash_history.forget(entry.sequence)
            self._pool.resolve(entry, reward)

    def _apportion_computed_tokens(self, batch: list[PendingSequence], num_computed: int) -> None:
        """Share out what a batch computed; a client is told nothing of what others had in it."""
        by_owner: dict[str, list[PendingSequence]] = {}
        for entry in batch:
            by_owner.setdefault(entry.owner, []).append(entry)
        for entries in by_owner.values():
            is_alone = self._shares_rewards or len(by_owner) == 1
            total = num_computed if is_alone else _compute_tree_size(entries)
            parts = apportion(total, [len(entry.sequence) for entry in entries])
            for entry, part in zip(entries, parts, strict=True):
                if entry.requests:
                    entry.requests[0].num_computed_tokens += part

    def _mark_known_suspects(
        self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]
    ) -> None:
        """What was there when a replica was lost, and is posted again, is still under suspicion."""
        for entry in self._pool.find_pending(flow, sequences) if self._crash_history else ():
            if (number := self._crash_history.count(entry.sequence)) >= MAX_CRASHES:
                self._pool.mark_dispatched([entry], asyncio.get_running_loop().time())
                self._quarantine(entry)
            elif number and entry not in self._suspects:
                self._suspects.append(entry)

    def _handle_lost_replica(self, batch: list[PendingSequence], error: ReplicaLostError) -> None:
        """The replica went with the batch: each goes to another one, but not for ever."""
        logger.warning("%s: %d conversations lost: %s", self._alias, len(batch), error.detail)
        suspects = []
        for entry in batch:
            number = self._crash_history.add(entry.sequence, error.replica)
            suspects.append(entry) if number < MAX_CRASHES else self._quarantine(entry)
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
        """Something else went wrong: in halves, until what it is about stands alone."""
        logger.error("a batch of %d conversations failed", len(batch), exc_info=error)
        if len(batch) > 1:
            middle = len(batch) // 2
            self._retry([batch[:middle], batch[middle:]])
            return
        what = f"scoring failed on this conversation ({type(error).__name__})"
        failure = ScoringError(f"{what}; the service's log has the details")
        self._pool.resolve(batch[0], ScoreError.from_exception(failure))

    def _retry(self, batches: list[list[PendingSequence]]) -> None:
        for batch in batches:
            self._pool.requeue(batch)
        self._retry_batches.extend(batches)


def _compute_tree_size(batch: Collection[PendingSequence]) -> int:
    return compute_tree_size(sorted({entry.sequence for entry in batch}))
