"""What waits for one model: each distinct sequence once, with all who wait for it. No sending here.

`PendingPool.add` puts sequences in, `PendingPool.peek` says what is to be taken, `PendingPool.mark_dispatched` marks it as on
its way, and each then either gets its reward (`settle`) or comes back (`put_back`).
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
    """The answer to the sequences of one call.

    Attributes:
        batch: rewards in order. The tokens that a batch computed are shared out among its sequences
            by their lengths; the share of a sequence goes to the oldest call that waits for it.
        fingerprints: of the models that computed them; several if it was replaced meanwhile.
        queue_duration_s: seconds until the first of them went to a replica.
        batches: seconds on the device of each batch that they were in, by its number.
    """

    batch: ScoredBatch
    fingerprints: frozenset[Fingerprint]
    queue_duration_s: float
    batch_seconds: dict[int, float]


@dataclass(eq=False, slots=True)
class PendingRequest:
    """What one request asked for at once, and what has come of it."""

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
        """All that it asked for; only once nothing is missing."""
        return DispatchResult(
            ScoredBatch(tuple(self.rewards[s] for s in self.sequences), self.num_computed_tokens),
            frozenset(self.fingerprints),
            0.0 if self.dispatched_at is None else self.dispatched_at - self.submitted_at,
            self.batch_seconds,
        )


@dataclass(eq=False, slots=True)
class PendingSequence:
    """A sequence that is waited for, whoever waits.

    Attributes:
        owner: the client whose it is, where clients share no rewards; else empty.
        calls: that wait for it, oldest first.
        is_running: whether it is on its way through a replica.
    """

    sequence: TokenIds
    owner: str = ""
    requests: list[PendingRequest] = field(default_factory=list)
    is_running: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be sent."""
        return bool(self.requests) and not self.is_running


class PendingPool:
    """All that waits for one model, in fair order.

    Args:
        shares_rewards: whether what several clients wait for is computed once for all of them.

    Attributes:
        num_tokens: of what waits, without what is on its way.
        by_client: tokens that each client asked for and has not got.
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
        """Distinct sequences that wait or are on their way."""
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Distinct sequences that wait."""
        return sum(entry.is_pending for entry in self._entries.values())

    def add(self, flow: Flow[PendingSequence], sequences: Sequence[TokenIds]) -> PendingRequest:
        """Have sequences wait for their rewards; the call's future is done when all have come."""
        loop = asyncio.get_running_loop()
        distinct = dict.fromkeys(sequences)
        assert all(distinct), "no sequence may be empty"
        call = PendingRequest(
            flow, tuple(sequences), len(distinct), loop.create_future(), loop.time()
        )
        if not distinct:
            call.future.set_result(None)
        entries = []
        owner = self._get_owner(flow)
        for sequence in distinct:
            entry = self._entries.get((owner, sequence))
            if entry is None:
                entry = self._entries[owner, sequence] = PendingSequence(sequence, owner)
                self.num_tokens += len(sequence)
            entry.requests.append(call)
            entries.append(entry)
        self._adjust_tokens(flow, sum(map(len, distinct)))
        self._queue.add(flow, entries)
        return call

    def find_pending(
        self, flow: Flow[PendingSequence], sequences: Iterable[TokenIds]
    ) -> list[PendingSequence]:
        """What is to be sent of these sequences, each once."""
        owner = self._get_owner(flow)
        found = (self._entries.get((owner, s)) for s in dict.fromkeys(sequences))
        return [entry for entry in found if entry is not None and entry.is_pending]

    def cancel(self, request: PendingRequest) -> None:
        """Nobody waits for this call any more; what only it wanted is dropped."""
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
        """A request is over."""
        self._queue.discard(flow)
        self._adjust_tokens(flow, -flow.num_tokens)
        flow.is_over = True

    def peek(
        self, num_tokens: int, exclude: Iterable[PendingSequence] = ()
    ) -> dict[TokenIds, list[PendingSequence]]:
        """What is to be taken next, in order, of about so many tokens; all entries of each."""
        held_back = set(exclude)
        found: dict[TokenIds, list[PendingSequence]] = {}
        for entry in self._queue.peek(num_tokens):
            if entry not in held_back:
                found.setdefault(entry.sequence, []).append(entry)
        return found

    def mark_dispatched(self, batch: Sequence[PendingSequence], now: float) -> None:
        """What is wanted of a batch goes on its way."""
        for entry in batch:
            assert entry.is_pending
            entry.is_running = True
            self.num_tokens -= len(entry.sequence)
            self._queue.mark_dispatched(entry)
            for call in entry.requests:
                if call.dispatched_at is None:
                    call.dispatched_at = now
        self._queue.prune()

    def requeue(self, batch: Iterable[PendingSequence]) -> None:
        """It came back without rewards; what nobody waits for any more is dropped."""
        for entry in batch:
            entry.is_running = False
            if entry.requests:
                self.num_tokens += len(entry.sequence)
            else:
                self._drop(entry)

    def resolve(self, entry: PendingSequence, reward: float | ScoreError) -> None:
        """The reward of what was on its way, to all who wait for it."""
        for call in entry.requests:
            call.rewards[entry.sequence] = reward
            self._adjust_tokens(call.flow, -len(entry.sequence))
            call.num_missing -= 1
            if not call.num_missing and not call.future.done():
                call.future.set_result(None)
        self._drop(entry)

    def fail(self, batch: Collection[PendingSequence], error: RewardError) -> None:
        """There will be no rewards: whoever waits for one of these gets the error."""
        for call in {call: None for entry in batch for call in entry.requests}:
            if not call.future.done():
                call.future.set_exception(error)
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
            del self.tokens_by_client[flow.client]  # there may be any number of clients in time


def build_report(
    model: str,
    batch: Sequence[PendingSequence],
    result: BatchResult,
    max_batch_tokens: int,
    *,
    sent_at: float,
    elapsed_s: float,
) -> BatchReport:
    """What there is to tell of a batch that came back and is not yet settled."""
    return BatchReport(
        model=model,
        num_sequences=len(batch),
        num_tokens=sum(len(entry.sequence) for entry in batch),
        num_computed_tokens=result.batch.num_computed_tokens,
        max_batch_tokens=max_batch_tokens,
        queue_durations_s=tuple(
            sent_at - call.submitted_at for entry in batch for call in entry.requests
        ),
        inference_s=result.inference_s,
        elapsed_s=elapsed_s,
    )
