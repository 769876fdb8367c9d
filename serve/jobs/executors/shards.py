"""A call to services in parts, each small enough for one request, that any connection may take.

Conversations of one prompt come into one part, where the service sees what they share.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rm_core import Reward, RewardError, ScoreError, Truncation
from rm_core.inputs.conversations import ChatJson
from serve.jobs.executors.base import ScoreBatchResult

MAX_CONVERSATIONS = 128
MAX_BYTES = 2 * 2**20


@dataclass(slots=True, eq=False)
class ShardedCall:
    """One `submit`, until all its parts are back. Its fields are the queue's to change.

    Attributes:
        conversations: all of them.
        truncation: what to do with what is too long.
        results: `[num_conversations]`; None where it is still missing.
        num_missing: parts that are not back.
        future: gets the whole answer.
        is_begun: whether a part was taken.
    """

    conversations: Sequence[ChatJson]
    truncation: Truncation
    results: list[Reward | ScoreError | None]
    num_missing: int
    future: Future[ScoreBatchResult] = field(default_factory=Future)
    num_computed_tokens: int = 0
    is_begun: bool = False


@dataclass(slots=True, eq=False)
class Shard:
    """Some conversations of a call.

    Attributes:
        call: whose they are.
        places: their indices in it.
        failing_since: when it was refused first, by `time.monotonic`; None if never.
    """

    call: ShardedCall
    indices: Sequence[int]
    failing_since: float | None = None

    @property
    def conversations(self) -> list[ChatJson]:
        """In the order of `places`."""
        return [self.call.conversations[place] for place in self.indices]


class ShardQueue:
    """Parts that wait for a connection. Safe to use from several threads."""

    def __init__(self) -> None:
        self._waiting: deque[Shard] = deque()
        self._changed = threading.Condition()
        self.is_closed = threading.Event()

    def add(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Queue a call behind all others."""
        parts = list(split_into_shards(conversations))
        call = ShardedCall(conversations, truncation, [None] * len(conversations), len(parts))
        with self._changed:
            self._waiting.extend(Shard(call, places) for places in parts)
            self._changed.notify_all()
        return call.future

    def take(self) -> Shard | None:
        """The next part, as soon as there is one; None once the queue is closed."""
        with self._changed:
            while not self.is_closed.is_set():
                while self._waiting:
                    part = self._waiting.popleft()
                    if _is_wanted(part.call):
                        return part
                self._changed.wait()
        return None

    def requeue(self, shard: Shard) -> None:
        """A part that could not be scored goes before all others."""
        with self._changed:
            self._waiting.appendleft(shard)
            self._changed.notify()

    def complete(self, shard: Shard, scored: ScoreBatchResult) -> None:
        """The results of a part; the last one completes the call."""
        with self._changed:
            call = shard.call
            for place, result in zip(shard.indices, scored.results, strict=True):
                call.results[place] = result
            call.num_computed_tokens += scored.num_computed_tokens
            call.num_missing -= 1
            if call.num_missing or call.future.done():
                return
        results = [result for result in call.results if result is not None]
        call.future.set_result(ScoreBatchResult(results, call.num_computed_tokens))

    def fail(self, shard: Shard, error: RewardError) -> None:
        """A part that nobody scores fails its call."""
        with self._changed:
            if not shard.call.future.done():
                shard.call.future.set_exception(error)

    def close(self) -> None:
        """Let all connections go once they have answered."""
        with self._changed:
            self.is_closed.set()
            self._changed.notify_all()


def split_into_shards(conversations: Sequence[ChatJson]) -> Iterator[list[int]]:
    """Indices of conversations in parts, what starts alike in one part where it fits."""
    texts = [json.dumps(conversation) for conversation in conversations]
    part: list[int] = []
    size = 0
    for place in sorted(range(len(texts)), key=texts.__getitem__):
        if part and (len(part) == MAX_CONVERSATIONS or size + len(texts[place]) > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(place)
        size += len(texts[place])
    if part:
        yield part


def _is_wanted(call: ShardedCall) -> bool:
    if not call.is_begun:
        call.is_begun = True
        return call.future.set_running_or_notify_cancel()
    return not call.future.done()
