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
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from rm_core import BatchResult, EncodedImage, RewardError, ScoreError, ScoringError
from rm_core.packing import Readouts, TokenIds
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.scheduler.batching import (
    Prompt,
    PromptIndex,
    apportion,
    compute_tree_size,
    form_mixed_batch,
)
from serve.scheduler.pending import (
    MAX_CRASHES,
    NO_IMAGES,
    CrashHistory,
    PendingPool,
    PendingSequence,
    RequestFlow,
    build_quarantine_error,
    set_results,
)
from serve.telemetry.metrics import Metrics
from serve.worker.backends import Backend
from serve.worker.worker import RateEstimator, SequenceBatch

logger = logging.getLogger(__name__)

BatchRunner: TypeAlias = Callable[[list[PendingSequence], "InFlightBatch"], Awaitable[None]]

# A batch is formed from the next sequences of the queue, as many as fill this many token budgets.
# That bounds how far newer sequences overtake older ones, and the time that forming a batch takes:
# 14 to 47 ms of the event loop for 4 budgets of 32,768 tokens in conversations of 50.
_LOOK_AHEAD = 4
# Idle replicas share what is pending, in batches of at least this part of the token budget: much
# smaller ones are hardly faster on a device.
_MAX_SHARES = 8
# A replica gets its next batch this long before it is expected to be free: longer than a batch
# takes to reach it, short enough that requests which arrive meanwhile do not wait behind the batch.
_PREFETCH_S = 0.05
# If batches take longer, a replica that is idle between two of them loses next to nothing, and a
# request that arrives meanwhile would wait long behind a batch that was sent ahead.
_SHORT_BATCH_S = 0.1
_BUSY_RETRY_S = 0.1


class Dispatcher:
    """Queues sequences of one model and sends them to its replicas in batches.

    Args:
        alias: alias of the model.
        backend: replicas of the model.
        metrics: counts batches, retries and quarantined conversations; None: nobody reads them.
        shares_rewards: whether a sequence that several clients wait for is computed once for all of
            them, and tokens that their conversations share are counted once.

        count_prompt_tokens: returns how many first tokens of a sequence other sequences may share.

    Attributes:
        max_batch_tokens: token budget of a batch; set once the model is loaded.
        num_outputs: number of the head's outputs at each readout; set once the model is loaded.
        prompts: prompts in the replicas' prefix caches; its size is set once the model is loaded.
    """

    def __init__(
        self,
        alias: str,
        backend: Backend,
        metrics: Metrics | None = None,
        shares_rewards: bool = True,
        count_prompt_tokens: Callable[[TokenIds], int] = lambda _: 0,
    ) -> None:
        self.max_batch_tokens = 1
        self.num_outputs = 1
        self.prompts = PromptIndex()
        self._count_prompt_tokens = count_prompt_tokens
        self._alias = alias
        self._backend = backend
        self._metrics = metrics or Metrics()
        self._pool = PendingPool(shares_rewards)
        # Sequences of a batch that was lost or failed. They go before all others, to one replica
        # that scores one at a time, so that the next loss has one possible cause.
        self._suspects: dict[PendingSequence, None] = {}
        self._suspects_are_running = False
        self._crash_history = CrashHistory()
        self._throughput = ThroughputEstimator(_PREFETCH_S)
        self._replicas: dict[str, None] = {}  # ids, the one that answered last at the end
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._refusal: RewardError | None = None  # of requests that come while it is paused
        # A batch belongs to no request: in the context of one, Serve would cancel a batch of many
        # requests when the client of that one disconnects.
        self._context = contextvars.Context()

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

    def should_wait(self, flow: RequestFlow, max_client_tokens: int) -> bool:
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
        seconds = self._throughput.rate.estimate_seconds(num_tokens)
        return None if seconds is None else seconds / self._num_devices

    @contextmanager
    def open_flow(self, client: str, priority: int) -> Iterator[RequestFlow]:
        """Open the flow of a request, and discard what is left of it at the end of the `with`."""
        flow = RequestFlow(client, priority)
        try:
            yield flow
        finally:
            self._pool.discard(flow)

    async def compute_outputs(
        self,
        flow: RequestFlow,
        sequences: Sequence[TokenIds],
        readouts: Sequence[Readouts] = (),
        images: Mapping[TokenIds, tuple[EncodedImage, ...]] = NO_IMAGES,
    ) -> list[float | ScoreError]:
        """Return the outputs at the readouts of each sequence; the cost is added to the flow.

        If the call is cancelled, its pending sequences are dropped.

        Args:
            flow: flow of the request.
            sequences: token ids, none empty; equal ones are scored once.
            readouts: see `rm_core.packing.pack`.
            images: images of each sequence that has any.

        Returns:
            The head's outputs, or an error for each, in the order of the sequences and of their
            readouts; one reward for each sequence of a classifier.

        Raises:
            RewardError: none of the model's replicas will answer.
        """
        readouts = readouts or [()] * len(sequences)
        if self._refusal is not None:
            raise self._refusal
        burst = self._pool.add(flow, sequences, readouts, images)
        if self._crash_history:
            self._mark_known_suspects(burst.entries)
        if self.prompts.max_tokens:
            for entry in burst.entries:
                num_prompt_tokens = self._count_prompt_tokens(entry.sequence)
                if entry.readouts:  # these tokens are computed in any case
                    num_prompt_tokens = min(num_prompt_tokens, entry.readouts[0])
                entry.prompt = Prompt.of(entry.sequence, num_prompt_tokens, entry.owner)
        if burst.num_missing:
            self._schedule_soon()
        try:
            await burst.future
        finally:
            if burst.num_missing:
                self._pool.cancel(burst)
        inputs = zip(sequences, readouts, strict=True)
        return [output for key in inputs for output in burst.outputs[key]]

    def pause(self, refusal: RewardError | None = None) -> None:
        """Send no further batches until `resume`; those in flight are finished.

        Args:
            refusal: error of all requests with sequences that are pending, or will be; None: they
                wait.
        """
        self._is_paused, self._refusal = True, refusal
        if refusal is not None:
            self._pool.fail_pending(refusal)

    def resume(self) -> None:
        """Send batches again."""
        self._is_paused, self._refusal = False, None
        self._schedule_soon()

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
        """While a replica is free, form the next batch and send it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._is_paused:
            return
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
                num_tokens = _compute_tree_size(suspects)
                self._send(suspects, num_tokens, "", self._run_one_by_one, now)
            elif formed := self._form_next_batch(now):
                self._send(*formed, self._run_together, now)
            else:
                return
        self._suspects.clear()  # no request waits for them any longer

    def _take_suspects(self) -> list[PendingSequence]:
        if self._suspects_are_running:
            return []
        suspects, self._suspects = self._suspects, {}
        return [entry for entry in suspects if entry.is_pending]

    def _form_next_batch(self, now: float) -> tuple[list[PendingSequence], int, str] | None:
        """Return sequences that are next in fair order, and those that share most with them.

        Also the number of tokens to compute, and the id of the replica that should have them, empty
        for any; None if no sequence should be sent now.
        """
        pending = self._pool.peek(
            _LOOK_AHEAD * self.max_batch_tokens,
            exclude=self._suspects,
            get_size=self._count_uncached_tokens,
        )
        replica, max_tokens = "", self.max_batch_tokens
        if self.prompts.max_tokens and self._backend.num_replicas > 1:
            pending, replica = self._choose_replica(pending, now)
            max_tokens = self._compute_share(pending)
        if not pending:
            return None
        half = max_tokens // 2
        small = [
            sequence
            for sequence, entries in pending.items()
            if any(entry.bursts[0].flow.num_tokens <= half for entry in entries)
        ]
        cached = {
            sequence: num_cached
            for sequence, entries in pending.items()
            if (num_cached := min(self.prompts.count_cached(e.prompt) for e in entries))
        }
        batch = form_mixed_batch(small, list(pending), max_tokens, cached)
        entries = [entry for sequence in batch.sequences for entry in pending[sequence]]
        return entries, batch.num_tokens, replica

    def _choose_replica(
        self, pending: dict[TokenIds, list[PendingSequence]], now: float
    ) -> tuple[dict[TokenIds, list[PendingSequence]], str]:
        """Return the sequences that may be in the next batch, and the replica that should have it.

        These are sequences whose prompts that replica has, or no replica has. A sequence whose
        prompt is at a busy replica waits while there are others to send, and while that replica
        should be free before another one could compute the prompt twice; but not for a batch that
        takes much longer than expected.
        """
        throughput = self._throughput
        busy = throughput.map_busy_replicas()
        free = [name for name in self._replicas if name not in busy]
        is_one_idle = throughput.num_in_flight < self._backend.num_replicas
        if not free and not is_one_idle:
            free = [throughput.find_next_free()]
        ready: dict[TokenIds, list[PendingSequence]] = {}
        moving: dict[TokenIds, list[PendingSequence]] = {}
        replica, latest_end = "", math.inf
        for sequence, entries in pending.items():
            prompt = entries[0].prompt
            home = self.prompts.get_replica(prompt)
            if home in free:
                replica = replica or home
                if home == replica:
                    ready[sequence] = entries
            elif prompt is not None and home in busy and now < busy[home].latest_end < math.inf:
                seconds = throughput.rate.estimate_seconds(prompt.num_tokens)
                if is_one_idle and seconds and busy[home].expected_end - now > 2 * seconds:
                    moving[sequence] = entries
                latest_end = min(latest_end, busy[home].latest_end)
            else:
                ready[sequence] = entries
        if pending and not ready and not moving:
            self._schedule_soon(latest_end - now)  # unless a result comes before
        return ready or moving, replica or next(iter(free), "")

    def _compute_share(self, pending: Mapping[TokenIds, list[PendingSequence]]) -> int:
        """Return the token budget of a batch of which each free replica gets an equal one."""
        num_free = self._backend.num_replicas - self._throughput.num_in_flight
        if num_free <= 1:
            return self.max_batch_tokens
        prompts = {entries[0].prompt for entries in pending.values()}
        num_tokens = sum(prompt.num_tokens for prompt in prompts if prompt) - sum(
            map(self.prompts.count_cached, prompts)
        )
        for sequence, entries in pending.items():
            prompt = entries[0].prompt
            num_tokens += len(sequence) - (prompt.num_tokens if prompt else 0)
        least = self.max_batch_tokens // _MAX_SHARES
        return min(self.max_batch_tokens, max(least, math.ceil(num_tokens / num_free)))

    def _count_uncached_tokens(self, entry: PendingSequence) -> int:
        return len(entry.sequence) - self.prompts.count_cached(entry.prompt)

    def _send(
        self,
        batch: list[PendingSequence],
        num_tokens: int,
        replica: str,
        run: BatchRunner,
        now: float,
    ) -> None:
        """Send a batch, of whose tokens so many are to be computed, if possible to a replica."""
        self._pool.mark_dispatched(batch, now)
        for entry in batch:
            if entry.prompt is not None:
                self.prompts.add(entry.prompt, replica)
        in_flight = self._throughput.begin(now, num_tokens, self._num_devices, replica)
        task = asyncio.get_running_loop().create_task(self._supervise(batch, run, in_flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(
        self, batch: list[PendingSequence], run: BatchRunner, in_flight: InFlightBatch
    ) -> None:
        try:
            await run(batch, in_flight)
        finally:
            self._throughput.end(in_flight)
            # Of a call that was cancelled, or of suspects behind one that was lost.
            self._suspect([entry for entry in batch if entry.is_running])
            self._schedule_soon()

    async def _run_together(self, batch: list[PendingSequence], in_flight: InFlightBatch) -> None:
        """Run a batch on a replica, and handle every outcome."""
        try:
            while not await self._try_to_run(batch, in_flight):
                if self._is_paused:  # the replicas sleep
                    self._requeue(batch)
                    return
                await asyncio.sleep(_BUSY_RETRY_S)
        except ReplicaLostError as error:
            self._handle_lost_replica(batch, error)
        except RewardError as error:
            self._pool.fail(batch, error)
        # Boundary of the batch: its requests get the failure, and the dispatcher goes on.
        except Exception as error:
            self._handle_failure(batch, error)

    async def _run_one_by_one(
        self, suspects: list[PendingSequence], _in_flight: InFlightBatch
    ) -> None:
        """Run suspects on a replica, one at a time, until one is lost or fails."""
        left, has_begun = deque(suspects), False
        try:
            sent_at = asyncio.get_running_loop().time()
            sequences = self._build_message(suspects)
            async for result in self._backend.run_one_by_one(sequences, self._pool.num_tokens):
                if result is None:
                    has_begun = True
                else:
                    self._record([left[0]], result, sent_at)
                    set_results(self._resolve([left[0]], result))
                    left.popleft()
        except ReplicaLostError as error:
            if has_begun and left:
                self._handle_lost_replica([left[0]], error)
        except ReplicaBusyError:
            await asyncio.sleep(_BUSY_RETRY_S)
        except RewardError as error:
            self._pool.fail(left, error)
        except Exception as error:  # as above
            if left:
                self._handle_failure([left[0]], error)
        finally:
            self._suspects_are_running = False

    async def _try_to_run(self, batch: list[PendingSequence], in_flight: InFlightBatch) -> bool:
        """Return whether the batch is done: it has its rewards, or no request waits for it.

        The replica of `in_flight` gets its next batch before the rewards are answered.
        """
        sent_at = asyncio.get_running_loop().time()
        if not any(entry.bursts for entry in batch):
            self._pool.requeue(batch)
            return True
        try:
            result = await self._backend.run_batch(
                self._build_message(batch), self._pool.num_tokens
            )
        except ReplicaBusyError:
            self._metrics.record_retry(self._alias, "overloaded", len(batch))
            return False
        self._record(batch, result, sent_at)
        resolved = self._resolve(batch, result)
        self._throughput.end(in_flight)
        try:
            self._schedule()
        finally:
            set_results(resolved)
        return True

    def _requeue(self, batch: Collection[PendingSequence]) -> None:
        self._pool.requeue(batch)
        if self._refusal is not None:
            self._pool.fail_pending(self._refusal)

    def _build_message(self, batch: Collection[PendingSequence]) -> SequenceBatch:
        has_owners = any(entry.owner for entry in batch)
        return SequenceBatch(
            tuple(entry.sequence for entry in batch),
            tuple(entry.owner for entry in batch) if has_owners else (),
            self.prompts.find_replica(entry.prompt for entry in batch),
            tuple(entry.readouts for entry in batch) if any(e.readouts for e in batch) else (),
            tuple({image.key: image for entry in batch for image in entry.images}.values()),
        )

    def _record(self, batch: list[PendingSequence], result: BatchResult, sent_at: float) -> None:
        num_readouts = sum(len(entry.readouts) or 1 for entry in batch)
        assert len(result.outputs) == self.num_outputs * num_readouts
        self._throughput.rate.observe(result.num_computed_tokens, result.inference_s)
        self._metrics.record_batch(
            self._alias,
            result,
            num_conversations=len(batch),
            max_batch_tokens=self.max_batch_tokens,
            queue_durations_s=[
                sent_at - burst.submitted_at for entry in batch for burst in entry.bursts
            ],
            elapsed_s=asyncio.get_running_loop().time() - sent_at,
        )
        self._replicas.pop(result.replica, None)
        self._replicas[result.replica] = None
        while len(self._replicas) > self._num_devices:
            del self._replicas[next(iter(self._replicas))]
        for flow in {burst.flow: None for entry in batch for burst in entry.bursts}:
            flow.fingerprints.add(result.fingerprint)
            flow.inference_s += result.inference_s
        self._apportion_computed_tokens(batch, result.num_computed_tokens)
        for entry in batch:
            if entry.prompt is not None:
                self.prompts.add(entry.prompt, result.replica)

    def _resolve(
        self, batch: list[PendingSequence], result: BatchResult
    ) -> list[asyncio.Future[None]]:
        """Distribute outputs; return the futures of the requests that wait for nothing else."""
        outputs = iter(result.outputs)
        resolved: list[asyncio.Future[None]] = []
        for entry in batch:
            self._crash_history.forget(entry.sequence)
            count = self.num_outputs * (len(entry.readouts) or 1)
            resolved += self._pool.resolve(entry, tuple(islice(outputs, count)))
        return resolved

    def _apportion_computed_tokens(self, batch: list[PendingSequence], num_computed: int) -> None:
        """Attribute computed tokens to requests; a client learns nothing of others in its batch."""
        by_owner: dict[str, list[PendingSequence]] = {}
        for entry in batch:
            by_owner.setdefault(entry.owner, []).append(entry)
        for entries in by_owner.values():
            total = num_computed if len(by_owner) == 1 else _compute_tree_size(entries)
            shares = apportion(total, [len(entry.sequence) for entry in entries])
            for entry, share in zip(entries, shares, strict=True):
                if entry.bursts:
                    entry.bursts[0].flow.num_computed_tokens += share

    def _mark_known_suspects(self, entries: Collection[PendingSequence]) -> None:
        """Treat sequences that were with a lost replica as suspects when they are sent again."""
        for entry in entries:
            if not entry.is_pending:
                continue
            num_crashes = self._crash_history.count(entry.sequence)
            if num_crashes >= MAX_CRASHES:
                self._pool.mark_dispatched([entry], asyncio.get_running_loop().time())
                self._quarantine(entry)
            elif num_crashes:
                self._suspects[entry] = None

    def _handle_lost_replica(self, batch: list[PendingSequence], error: ReplicaLostError) -> None:
        """Suspect the sequences of a lost batch; quarantine those that were lost too often."""
        logger.warning(
            "%s: %d conversations were with a lost replica: %s",
            self._alias,
            len(batch),
            error.detail,
        )
        self._replicas.pop(error.replica, None)
        suspects = []
        for entry in batch:
            num_crashes = self._crash_history.add(entry.sequence, error.replica)
            suspects.append(entry) if num_crashes < MAX_CRASHES else self._quarantine(entry)
        if suspects:
            self._metrics.record_retry(self._alias, error.reason, len(suspects))
            self._suspect(suspects)

    def _handle_failure(self, batch: list[PendingSequence], error: Exception) -> None:
        """Suspect the sequences of a failed batch; one that fails alone gets an error."""
        logger.error("a batch of %d conversations failed", len(batch), exc_info=error)
        if len(batch) > 1:
            self._suspect(batch)
            return
        failure = ScoringError(
            f"scoring failed on this conversation ({type(error).__name__}); the service's log has "
            "the details"
        )
        self._fail(batch[0], ScoreError.from_exception(failure))

    def _fail(self, entry: PendingSequence, error: ScoreError) -> None:
        """Give an entry an error at each of its readouts."""
        num_outputs = self.num_outputs * (len(entry.readouts) or 1)
        set_results(self._pool.resolve(entry, (error,) * num_outputs))

    def _quarantine(self, entry: PendingSequence) -> None:
        self._metrics.record_abandonment(self._alias, 1)
        self._fail(entry, build_quarantine_error(entry.sequence))

    def _suspect(self, entries: Collection[PendingSequence]) -> None:
        self._requeue(entries)
        self._suspects |= dict.fromkeys(entry for entry in entries if entry.is_pending)


def _compute_tree_size(batch: Collection[PendingSequence]) -> int:
    """Count the tokens of the batch's prefix tree; batches are sorted."""
    return compute_tree_size([entry.sequence for entry in batch])


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch in flight: how long it should take, when it should be done, and where it should run.

    `replica` is empty for any replica.
    """

    expected_seconds: float
    expected_end: float
    replica: str

    @property
    def latest_end(self) -> float:
        """When the batch has taken twice its time and a second."""
        return self.expected_end + self.expected_seconds + 1.0


class ThroughputEstimator:
    """Tracks batches in flight through replicas that run one batch after another. Pure.

    Args:
        prefetch_s: how many seconds before a replica is expected to be free it may get its next
            batch, if batches are short.

    Attributes:
        rate: rate of one replica.
    """

    def __init__(self, prefetch_s: float) -> None:
        self._prefetch_s = prefetch_s
        self._in_flight: list[InFlightBatch] = []
        self.rate = RateEstimator(decay=0.8)

    @property
    def num_in_flight(self) -> int:
        """Number of batches in flight."""
        return len(self._in_flight)

    def begin(
        self, now: float, num_tokens: int, num_replicas: int, replica: str = ""
    ) -> InFlightBatch:
        """Record that a batch was sent; `end` has to follow."""
        start = now
        if replica and (before := self.map_busy_replicas().get(replica)):
            start = max(now, before.expected_end)
        elif len(self._in_flight) >= num_replicas:
            start = max(now, self._sort_by_end()[len(self._in_flight) - num_replicas].expected_end)
        seconds = self.rate.estimate_seconds(num_tokens)
        seconds = math.inf if seconds is None else seconds
        batch = InFlightBatch(seconds, start + seconds, replica)
        self._in_flight.append(batch)
        return batch

    def end(self, batch: InFlightBatch) -> None:
        """Record, once or more, that the result of a batch arrived or will not arrive."""
        if batch in self._in_flight:
            self._in_flight.remove(batch)

    def estimate_wait(self, now: float, num_replicas: int) -> float | None:
        """Estimate the seconds until a replica may get a batch; None: not before a result."""
        num_waiting = len(self._in_flight) - num_replicas
        if num_waiting < 0:
            return 0.0
        if num_waiting >= num_replicas:  # one batch runs and one waits at each replica
            return None
        next_done = self._sort_by_end()[num_waiting]
        if next_done.expected_seconds > _SHORT_BATCH_S:
            return None
        return max(0.0, next_done.expected_end - self._prefetch_s - now)

    def map_busy_replicas(self) -> dict[str, InFlightBatch]:
        """Return the known replicas of batches in flight, each with its batch that ends last."""
        return {batch.replica: batch for batch in self._sort_by_end() if batch.replica}

    def find_next_free(self) -> str:
        """Return the known replica that should be free next, of those that have one batch."""
        num_batches = Counter(batch.replica for batch in self._in_flight)
        replicas = [batch.replica for batch in self._sort_by_end()]
        return next((name for name in replicas if name and num_batches[name] == 1), "")

    def _sort_by_end(self) -> list[InFlightBatch]:
        return sorted(self._in_flight, key=lambda batch: batch.expected_end)
