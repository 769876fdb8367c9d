"""What waits for one model: each distinct sequence once, with all who wait for it. No sending here.

`Pool.ask` puts sequences in, `Pool.next_ones` says what is to be taken, `Pool.take` marks it as on
its way, and each then either gets its reward (`settle`) or comes back (`put_back`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from rm_core import Fingerprint, RewardError, ScoredBatch, ScoreError
from rm_core.packing import TokenIds
from serve.scheduler.fair_queue import FairOrder, Flow
from serve.telemetry.events import BatchReport
from serve.worker.backends import Answer


@dataclass(frozen=True, slots=True)
class Computed:
    """The answer to the sequences of one call.

    Attributes:
        batch: rewards in order. The tokens that a batch computed are shared out among its sequences
            by their lengths; the share of a sequence goes to the oldest call that waits for it.
        fingerprints: of the models that computed them; several if it was replaced meanwhile.
        queue_s: seconds until the first of them went to a replica.
        batches: seconds on the device of each batch that they were in, by its number.
    """

    batch: ScoredBatch
    fingerprints: frozenset[Fingerprint]
    queue_s: float
    batches: dict[int, float]


@dataclass(eq=False, slots=True)
class Call:
    """What one request asked for at once, and what has come of it."""

    flow: Flow[Entry]
    sequences: tuple[TokenIds, ...]
    num_missing: int
    future: asyncio.Future[None]
    asked_at: float
    taken_at: float | None = None
    rewards: dict[TokenIds, float | ScoreError] = field(default_factory=dict)
    fingerprints: set[Fingerprint] = field(default_factory=set)
    num_computed_tokens: int = 0
    batches: dict[int, float] = field(default_factory=dict)

    def answer(self) -> Computed:
        """All that it asked for; only once nothing is missing."""
        return Computed(
            ScoredBatch(tuple(self.rewards[s] for s in self.sequences), self.num_computed_tokens),
            frozenset(self.fingerprints),
            0.0 if self.taken_at is None else self.taken_at - self.asked_at,
            self.batches,
        )


@dataclass(eq=False, slots=True)
class Entry:
    """A sequence that is waited for, whoever waits.

    Attributes:
        owner: the client whose it is, where clients share no rewards; else empty.
        calls: that wait for it, oldest first.
        is_running: whether it is on its way through a replica.
    """

    sequence: TokenIds
    owner: str = ""
    calls: list[Call] = field(default_factory=list)
    is_running: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether it is still to be sent."""
        return bool(self.calls) and not self.is_running


class Pool:
    """All that waits for one model, in fair order.

    Args:
        shares_rewards: whether what several clients wait for is computed once for all of them.

    Attributes:
        num_tokens: of what waits, without what is on its way.
        by_client: tokens that each client asked for and has not got.
    """

    def __init__(self, shares_rewards: bool = True) -> None:
        self.num_tokens = 0
        self.by_client: Counter[str] = Counter()
        self._shares_rewards = shares_rewards
        self._entries: dict[tuple[str, TokenIds], Entry] = {}
        self._order: FairOrder[Entry] = FairOrder(
            size_of=lambda entry: len(entry.sequence), wanted=lambda entry: entry.is_wanted
        )

    def __len__(self) -> int:
        """Distinct sequences that wait or are on their way."""
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Distinct sequences that wait."""
        return sum(entry.is_wanted for entry in self._entries.values())

    def ask(self, flow: Flow[Entry], sequences: Sequence[TokenIds]) -> Call:
        """Have sequences wait for their rewards; the call's future is done when all have come."""
        loop = asyncio.get_running_loop()
        distinct = dict.fromkeys(sequences)
        assert all(distinct), "no sequence may be empty"
        call = Call(flow, tuple(sequences), len(distinct), loop.create_future(), loop.time())
        if not distinct:
            call.future.set_result(None)
        entries = []
        owner = self._owner(flow)
        for sequence in distinct:
            entry = self._entries.get((owner, sequence))
            if entry is None:
                entry = self._entries[owner, sequence] = Entry(sequence, owner)
                self.num_tokens += len(sequence)
            entry.calls.append(call)
            entries.append(entry)
        self._count(flow, sum(map(len, distinct)))
        self._order.add(flow, entries)
        return call

    def entries(self, flow: Flow[Entry], sequences: Iterable[TokenIds]) -> list[Entry]:
        """What is to be sent of these sequences, each once."""
        owner = self._owner(flow)
        found = (self._entries.get((owner, s)) for s in dict.fromkeys(sequences))
        return [entry for entry in found if entry is not None and entry.is_wanted]

    def forget(self, call: Call) -> None:
        """Nobody waits for this call any more; what only it wanted is dropped."""
        owner = self._owner(call.flow)
        for sequence in dict.fromkeys(call.sequences):
            entry = self._entries.get((owner, sequence))
            if entry is None or call not in entry.calls:
                continue
            entry.calls.remove(call)
            if not entry.calls and not entry.is_running:
                del self._entries[owner, sequence]
                self.num_tokens -= len(sequence)

    def discard(self, flow: Flow[Entry]) -> None:
        """A request is over."""
        self._order.discard(flow)
        self._count(flow, -flow.num_tokens)
        flow.is_over = True

    def next_ones(
        self, num_tokens: int, without: Iterable[Entry] = ()
    ) -> dict[TokenIds, list[Entry]]:
        """What is to be taken next, in order, of about so many tokens; all entries of each."""
        held_back = set(without)
        found: dict[TokenIds, list[Entry]] = {}
        for entry in self._order.first(num_tokens):
            if entry not in held_back:
                found.setdefault(entry.sequence, []).append(entry)
        return found

    def take(self, batch: Sequence[Entry], now: float) -> None:
        """What is wanted of a batch goes on its way."""
        for entry in batch:
            assert entry.is_wanted
            entry.is_running = True
            self.num_tokens -= len(entry.sequence)
            self._order.took(entry)
            for call in entry.calls:
                if call.taken_at is None:
                    call.taken_at = now
        self._order.settle()

    def put_back(self, batch: Iterable[Entry]) -> None:
        """It came back without rewards; what nobody waits for any more is dropped."""
        for entry in batch:
            entry.is_running = False
            if entry.calls:
                self.num_tokens += len(entry.sequence)
            else:
                self._drop(entry)

    def settle(self, entry: Entry, reward: float | ScoreError) -> None:
        """The reward of what was on its way, to all who wait for it."""
        for call in entry.calls:
            call.rewards[entry.sequence] = reward
            self._count(call.flow, -len(entry.sequence))
            call.num_missing -= 1
            if not call.num_missing and not call.future.done():
                call.future.set_result(None)
        self._drop(entry)

    def refuse(self, batch: Collection[Entry], error: RewardError) -> None:
        """There will be no rewards: whoever waits for one of these gets the error."""
        for call in {call: None for entry in batch for call in entry.calls}:
            if not call.future.done():
                call.future.set_exception(error)
        for entry in batch:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        entry.calls.clear()
        entry.is_running = False
        self._entries.pop((entry.owner, entry.sequence), None)

    def _owner(self, flow: Flow[Entry]) -> str:
        return "" if self._shares_rewards else flow.client

    def _count(self, flow: Flow[Entry], num_tokens: int) -> None:
        if flow.is_over:
            return
        flow.num_tokens += num_tokens
        self.by_client[flow.client] += num_tokens
        if not self.by_client[flow.client]:
            del self.by_client[flow.client]  # there may be any number of clients in time


def report_of(
    model: str,
    batch: Sequence[Entry],
    answer: Answer,
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
        num_computed_tokens=answer.batch.num_computed_tokens,
        max_batch_tokens=max_batch_tokens,
        waited_s=tuple(sent_at - call.asked_at for entry in batch for call in entry.calls),
        forward_s=answer.forward_s,
        elapsed_s=elapsed_s,
    )
