"""Sequences that wait for one model: each distinct one once, with all requests that wait for it.

Nothing is sent from here. `PendingPool.add` adds the sequences of a request, `PendingPool.peek`
returns those that are next, and `PendingPool.mark_dispatched` marks them as in flight. Each then
either gets its reward (`PendingPool.resolve`) or becomes pending again (`PendingPool.requeue`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from rm_core import Fingerprint, RewardError, ScoredBatch, ScoreError
from rm_core.packing import TokenIds
from serve.scheduler.fair_queue import FairQueue, Flow
from serve.telemetry.events import BatchReport
from serve.worker.backends import BatchResult


@dataclass(frozen=True, slots=True)
class DispatchResult:
    """Rewards of the sequences of one `PendingRequest`.

    Attributes:
        batch: rewards in order. The tokens that a batch computed are divided among its sequences by
            their lengths; the share of a sequence goes to the oldest request that waits for it.
        fingerprints: fingerprints of the models that computed the rewards; several if the model was
            replaced meanwhile.
        queue_duration_s: seconds until the first sequence went to a replica.
        batch_seconds: seconds on the device of each batch that held a sequence, by the batch's
            number.
    """

    batch: ScoredBatch
    fingerprints: frozenset[Fingerprint]
    queue_duration_s: float
    batch_seconds: dict[int, float]


@dataclass(eq=False, slots=True)
class PendingRequest:
    """Sequences that a request asked for together, and the rewards that it has received."""

    flow: Flow[PendingSequence]
    sequences: tuple[TokenIds, ...]
    num_missing: int
    future: asyncio.Future[None]
    submitted_at: float
    dispatched_at: float | None = None
    rewards: dict[TokenIds, float | ScoreError] = field(default_factory=dict)
    fingerprints: set[Fingerprint] = field(default_factory=set)
    num_computed_tokens: int = 0
    batch_seconds: dict[int, float] = field(default_factory=dict)

    def build_result(self) -> DispatchResult:
        """Return the result; only once no reward is missing."""
        return DispatchResult(
            ScoredBatch(tuple(self.rewards[s] for s in self.sequences), self.num_computed_tokens),
            frozenset(self.fingerprints),
            0.0 if self.dispatched_at is None else self.dispatched_at - self.submitted_at,
            self.batch_seconds,
        )


@dataclass(eq=False, slots=True)
class PendingSequence:
    """A distinct sequence and the requests that wait for its reward.

    Attributes:
        sequence: token ids.
        owner: client that the sequence belongs to, where clients share no rewards; else empty.
        requests: requests that wait for the reward, oldest first.
        is_running: whether the sequence is in flight.
    """

    sequence: TokenIds
    owner: str = ""
    requests: list[PendingRequest] = field(default_factory=list)
    is_running: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether the sequence is still to be sent."""
        return bool(self.requests) and not self.is_running


class PendingPool:
    """Sequences that wait for one model, in fair order.

    Args:
        shares_rewards: whether a sequence that several clients wait for is computed once for all of
            them.

    Attributes:
        num_tokens: tokens of the pending sequences; those in flight are not counted.
        tokens_by_client: tokens that each client asked for and has not received.
    """

    def __init__(self, shares_rewards: bool = True) -> None:
        self.num_tokens = 0
        self.tokens_by_client: Counter[str] = Counter()
        self._shares_rewards = shares_rewards
        self._entries: dict[tuple[str, TokenIds], PendingSequence] = {}
        self._queue: FairQueue[PendingSequence] = FairQueue(
            get_size=lambda entry: len(entry.sequence), is_pending=lambda entry: entry.is_pending
        )

    def __len__(self) -> int:
        """Number of distinct sequences that are pending or in flight."""
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Number of distinct pending sequences."""
        return sum(entry.is_pending for entry in self._entries.values())

    def add(self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]) -> PendingRequest:
        """Add sequences; the future of the returned request is done once all rewards are there."""
        loop = asyncio.get_running_loop()
        distinct = dict.fromkeys(sequences)
        assert all(distinct), "no sequence may be empty"
        request = PendingRequest(
            flow, tuple(sequences), len(distinct), loop.create_future(), loop.time()
        )
        if not distinct:
            request.future.set_result(None)
        entries = []
        owner = self._get_owner(flow)
        for sequence in distinct:
            entry = self._entries.get((owner, sequence))
            if entry is None:
                entry = self._entries[owner, sequence] = PendingSequence(sequence, owner)
                self.num_tokens += len(sequence)
            entry.requests.append(request)
            entries.append(entry)
        self._adjust_tokens(flow, sum(map(len, distinct)))
        self._queue.add(flow, entries)
        return request

    def find_pending(
        self, flow: Flow[PendingSequence], sequences: Iterable[TokenIds]
    ) -> list[PendingSequence]:
        """Return the entries of these sequences that are still to be sent, each once."""
        owner = self._get_owner(flow)
        entries = (self._entries.get((owner, s)) for s in dict.fromkeys(sequences))
        return [entry for entry in entries if entry is not None and entry.is_pending]

    def cancel(self, request: PendingRequest) -> None:
        """Cancel a request; pending sequences that only this request waits for are dropped."""
        owner = self._get_owner(request.flow)
        for sequence in dict.fromkeys(request.sequences):
            entry = self._entries.get((owner, sequence))
            if entry is None or request not in entry.requests:
                continue
            entry.requests.remove(request)
            if not entry.requests and not entry.is_running:
                del self._entries[owner, sequence]
                self.num_tokens -= len(sequence)

    def discard(self, flow: Flow[PendingSequence]) -> None:
        """Close the flow of a request that has ended."""
        self._queue.discard(flow)
        self._adjust_tokens(flow, -flow.num_tokens)
        flow.is_over = True

    def peek(
        self, num_tokens: int, exclude: Iterable[PendingSequence] = ()
    ) -> dict[TokenIds, list[PendingSequence]]:
        """Return the next sequences in order, about so many tokens, with all entries of each."""
        excluded = set(exclude)
        entries: dict[TokenIds, list[PendingSequence]] = {}
        for entry in self._queue.peek(num_tokens):
            if entry not in excluded:
                entries.setdefault(entry.sequence, []).append(entry)
        return entries

    def mark_dispatched(self, batch: Sequence[PendingSequence], now: float) -> None:
        """Mark the entries of a batch, all of them pending, as in flight."""
        for entry in batch:
            assert entry.is_pending
            entry.is_running = True
            self.num_tokens -= len(entry.sequence)
            self._queue.mark_dispatched(entry)
            for request in entry.requests:
                if request.dispatched_at is None:
                    request.dispatched_at = now
        self._queue.prune()

    def requeue(self, batch: Iterable[PendingSequence]) -> None:
        """Make entries pending again; those that no request waits for any longer are dropped."""
        for entry in batch:
            entry.is_running = False
            if entry.requests:
                self.num_tokens += len(entry.sequence)
            else:
                self._drop(entry)

    def resolve(self, entry: PendingSequence, reward: float | ScoreError) -> None:
        """Give the reward of an entry in flight to all requests that wait for it."""
        for request in entry.requests:
            request.rewards[entry.sequence] = reward
            self._adjust_tokens(request.flow, -len(entry.sequence))
            request.num_missing -= 1
            if not request.num_missing and not request.future.done():
                request.future.set_result(None)
        self._drop(entry)

    def fail(self, batch: Collection[PendingSequence], error: RewardError) -> None:
        """Fail all requests that wait for an entry of the batch, and drop the entries."""
        for request in {request: None for entry in batch for request in entry.requests}:
            if not request.future.done():
                request.future.set_exception(error)
        for entry in batch:
            self._drop(entry)

    def _drop(self, entry: PendingSequence) -> None:
        entry.requests.clear()
        entry.is_running = False
        self._entries.pop((entry.owner, entry.sequence), None)

    def _get_owner(self, flow: Flow[PendingSequence]) -> str:
        return "" if self._shares_rewards else flow.client

    def _adjust_tokens(self, flow: Flow[PendingSequence], num_tokens: int) -> None:
        if flow.is_over:
            return
        flow.num_tokens += num_tokens
        self.tokens_by_client[flow.client] += num_tokens
        if not self.tokens_by_client[flow.client]:
            del self.tokens_by_client[flow.client]  # over time there may be any number of clients


def build_report(
    model: str,
    batch: Sequence[PendingSequence],
    result: BatchResult,
    max_batch_tokens: int,
    *,
    sent_at: float,
    elapsed_s: float,
) -> BatchReport:
    """Build the report of a batch that returned and is not yet resolved."""
    return BatchReport(
        model=model,
        num_sequences=len(batch),
        num_tokens=sum(len(entry.sequence) for entry in batch),
        num_computed_tokens=result.batch.num_computed_tokens,
        max_batch_tokens=max_batch_tokens,
        queue_durations_s=tuple(
            sent_at - request.submitted_at for entry in batch for request in entry.requests
        ),
        inference_s=result.inference_s,
        elapsed_s=elapsed_s,
    )
