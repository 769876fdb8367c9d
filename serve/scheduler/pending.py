"""Sequences that wait for one model: each distinct one once, with all requests that wait for it.

Nothing is sent from here. `PendingPool.add` adds sequences of a request, `PendingPool.peek` returns
those that are next, and `PendingPool.mark_dispatched` marks them as in flight. Each then either
gets its reward (`PendingPool.resolve`) or becomes pending again (`PendingPool.requeue`).
`CrashHistory` counts how often a sequence was with a replica when that was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from rm_core import EncodedImage, Fingerprint, RewardError, ScoreError
from rm_core.packing import Readouts, TokenIds
from serve.errors import ConversationQuarantinedError
from serve.scheduler.batching import Prompt
from serve.scheduler.fair_queue import FairQueue, Flow

MAX_CRASHES = 2
"""A conversation that was with so many replicas when they were lost is not sent to another."""

NO_IMAGES: Mapping[TokenIds, tuple[EncodedImage, ...]] = MappingProxyType({})
"""Of sequences of text."""

# Each takes some hundred bytes, and there are rarely any at all.
_MAX_REMEMBERED = 10_000
_RETENTION_S = 600.0


@dataclass(eq=False, slots=True)
class RequestFlow(Flow["PendingSequence"]):
    """The flow of a request, and what its rewards have cost so far.

    Attributes:
        fingerprints: fingerprints of the models that computed the rewards; several if the model was
            replaced meanwhile.
        num_computed_tokens: tokens that the model computed for the request. The tokens of a batch
            are divided among its sequences by their lengths; the share of a sequence goes to the
            oldest request that waits for it.
        queue_duration_s: seconds until the first sequence went to a replica; None before.
        inference_s: seconds on the device of all batches with a sequence of the request.
    """

    fingerprints: set[Fingerprint] = field(default_factory=set)
    num_computed_tokens: int = 0
    queue_duration_s: float | None = None
    inference_s: float = 0.0


@dataclass(eq=False, slots=True)
class Burst:
    """Sequences that a request added together, and the outputs that have arrived.

    Attributes:
        flow: flow of the request.
        entries: distinct sequences.
        submitted_at: time of the event loop.
        future: done once no output is missing.
        num_missing: number of sequences whose outputs are missing.
        outputs: outputs at the readouts of each sequence, by its token ids and readouts.
    """

    flow: RequestFlow
    entries: list[PendingSequence]
    submitted_at: float
    future: asyncio.Future[None]
    num_missing: int
    outputs: dict[tuple[TokenIds, Readouts], tuple[float | ScoreError, ...]] = field(
        default_factory=dict
    )


@dataclass(eq=False, slots=True)
class PendingSequence:
    """A distinct sequence and the bursts that wait for its reward.

    Attributes:
        sequence: token ids.
        readouts: see `rm_core.packing.pack`.
        owner: client that the sequence belongs to, where clients share no rewards; else empty.
        prompt: its first tokens, if a prefix cache may keep them.
        images: images whose token ids the sequence has.
        bursts: bursts that wait for the reward, oldest first.
        is_running: whether the sequence is in flight.
    """

    sequence: TokenIds
    readouts: Readouts = ()
    owner: str = ""
    prompt: Prompt | None = None
    images: tuple[EncodedImage, ...] = ()
    bursts: list[Burst] = field(default_factory=list)
    is_running: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether the sequence is still to be sent."""
        return bool(self.bursts) and not self.is_running


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
        self._entries: dict[tuple[str, TokenIds, Readouts], PendingSequence] = {}
        self._queue: FairQueue[PendingSequence] = FairQueue(
            get_size=lambda entry: len(entry.sequence), is_pending=lambda entry: entry.is_pending
        )

    @property
    def num_waiting(self) -> int:
        """Number of distinct pending sequences."""
        return sum(entry.is_pending for entry in self._entries.values())

    def add(
        self,
        flow: RequestFlow,
        sequences: Sequence[TokenIds],
        readouts: Sequence[Readouts] = (),
        images: Mapping[TokenIds, tuple[EncodedImage, ...]] = NO_IMAGES,
    ) -> Burst:
        """Add sequences; the future of the returned burst is done once all outputs are there."""
        loop = asyncio.get_running_loop()
        owner = "" if self._shares_rewards else flow.client
        burst = Burst(flow, [], loop.time(), loop.create_future(), 0)
        num_tokens = 0
        inputs = zip(sequences, readouts or [()] * len(sequences), strict=True)
        for sequence, positions in dict.fromkeys(inputs):
            assert sequence, "no sequence may be empty"
            entry = self._entries.get((owner, sequence, positions))
            if entry is None:
                entry = PendingSequence(sequence, positions, owner, images=images.get(sequence, ()))
                self._entries[owner, sequence, positions] = entry
                self.num_tokens += len(sequence)
            entry.bursts.append(burst)
            burst.entries.append(entry)
            num_tokens += len(sequence)
        burst.num_missing = len(burst.entries)
        if not burst.entries:
            burst.future.set_result(None)
        self._adjust_tokens(flow, num_tokens)
        self._queue.add(flow, burst.entries)
        return burst

    def cancel(self, burst: Burst) -> None:
        """Cancel a burst; pending sequences that only this burst waits for are dropped."""
        for entry in burst.entries:
            if burst not in entry.bursts:
                continue
            entry.bursts.remove(burst)
            if not entry.bursts and not entry.is_running:
                self._drop(entry)
                self.num_tokens -= len(entry.sequence)

    def discard(self, flow: RequestFlow) -> None:
        """Close the flow of a request that has ended."""
        self._queue.discard(flow)
        self._adjust_tokens(flow, -flow.num_tokens)
        flow.is_over = True

    def peek(
        self,
        num_tokens: int,
        exclude: Iterable[PendingSequence] = (),
        get_size: Callable[[PendingSequence], int] | None = None,
    ) -> dict[TokenIds, list[PendingSequence]]:
        """Return the next sequences in order, about so many tokens, with all entries of each.

        Args:
            num_tokens: see `FairQueue.peek`.
            exclude: entries to leave out.
            get_size: see `FairQueue.peek`.
        """
        excluded = set(exclude)
        entries: dict[TokenIds, list[PendingSequence]] = {}
        for entry in self._queue.peek(num_tokens, get_size):
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
            for burst in entry.bursts:
                if burst.flow.queue_duration_s is None:
                    burst.flow.queue_duration_s = now - burst.submitted_at
        self._queue.prune()

    def requeue(self, batch: Iterable[PendingSequence]) -> None:
        """Make entries pending again; those that no request waits for any longer are dropped."""
        for entry in batch:
            entry.is_running = False
            if entry.bursts:
                self.num_tokens += len(entry.sequence)
            else:
                self._drop(entry)

    def resolve(
        self, entry: PendingSequence, outputs: tuple[float | ScoreError, ...]
    ) -> list[asyncio.Future[None]]:
        """Give the outputs of an entry in flight to all requests that wait for them.

        Returns:
            The futures of the requests that have all outputs now, for `set_results`.
        """
        resolved = []
        for burst in entry.bursts:
            burst.outputs[entry.sequence, entry.readouts] = outputs
            self._adjust_tokens(burst.flow, -len(entry.sequence))
            burst.num_missing -= 1
            if not burst.num_missing:
                resolved.append(burst.future)
        self._drop(entry)
        return resolved

    def fail(self, batch: Collection[PendingSequence], error: RewardError) -> None:
        """Fail all requests that wait for an entry of the batch, and drop the entries."""
        for burst in {burst: None for entry in batch for burst in entry.bursts}:
            if not burst.future.done():
                burst.future.set_exception(error)
        for entry in batch:
            self._drop(entry)

    def fail_pending(self, error: RewardError) -> None:
        """Fail all requests that wait for a sequence which is not in flight."""
        self.fail([entry for entry in self._entries.values() if entry.is_pending], error)
        self.num_tokens = 0

    def _drop(self, entry: PendingSequence) -> None:
        entry.bursts.clear()
        entry.is_running = False
        self._entries.pop((entry.owner, entry.sequence, entry.readouts), None)

    def _adjust_tokens(self, flow: RequestFlow, num_tokens: int) -> None:
        if flow.is_over:
            return
        flow.num_tokens += num_tokens
        self.tokens_by_client[flow.client] += num_tokens
        if not self.tokens_by_client[flow.client]:
            del self.tokens_by_client[flow.client]  # over time there may be any number of clients


@dataclass(slots=True)
class _Crashes:
    last_at: float
    replicas: set[str] = field(default_factory=set)


class CrashHistory:
    """Counts the replicas that were lost with a sequence of token ids; expires after 600 s.

    The history outlives requests: a client that gives up on a conversation which crashes replicas
    and sends it again must not reset its count. Entries expire, because two crashes may be a
    coincidence.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: OrderedDict[bytes, _Crashes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._crashes)

    def add(self, sequence: TokenIds, replica: str) -> int:
        """Record a lost replica; return how many different replicas were lost with the sequence."""
        key, now = _hash_sequence(sequence), self._clock()
        crashes = self._crashes.pop(key, None) or _Crashes(now)
        crashes.last_at = now
        crashes.replicas.add(replica)
        self._crashes[key] = crashes
        if len(self._crashes) > _MAX_REMEMBERED:
            self._crashes.popitem(last=False)
        return len(crashes.replicas)

    def count(self, sequence: TokenIds) -> int:
        """Return how many different replicas were lost with the sequence."""
        key = _hash_sequence(sequence)
        crashes = self._crashes.get(key)
        if crashes is None:
            return 0
        if self._clock() - crashes.last_at > _RETENTION_S:
            del self._crashes[key]
            return 0
        return len(crashes.replicas)

    def forget(self, sequence: TokenIds) -> None:
        """Forget a sequence that was scored: it did not cause the crashes."""
        if self._crashes:
            self._crashes.pop(_hash_sequence(sequence), None)


def set_results(resolved: Iterable[asyncio.Future[None]]) -> None:
    """Wake the requests of `PendingPool.resolve`, except those that were cancelled."""
    for future in resolved:
        if not future.done():
            future.set_result(None)


def build_quarantine_error(sequence: TokenIds) -> ScoreError:
    """Build the error of a conversation that is not sent to another replica."""
    error = ConversationQuarantinedError(
        f"this conversation of {len(sequence)} tokens was with {MAX_CRASHES} replicas when they "
        "were lost, so it is not sent to another for some minutes; the service's log has the "
        "details"
    )
    return ScoreError.from_exception(error)


def _hash_sequence(sequence: TokenIds) -> bytes:
    return hashlib.blake2b(array("q", sequence).tobytes(), digest_size=16).digest()
