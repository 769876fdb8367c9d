"""Shards of a call to services: each fits into one request, and any connection may take it.

Conversations with the same prompt are in the same shard, so that the service can share the prompt.
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
    """One `submit`, until all its shards have results. Only the queue changes its fields.

    Attributes:
        conversations: all conversations of the call.
        truncation: how to handle conversations that are too long.
        results: `[num_conversations]`; None where the result is missing.
        num_missing: number of shards without results.
        future: resolved when all results are known.
        num_computed_tokens: number of tokens computed so far.
        is_begun: whether a connection took a shard.
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
    """Conversations of a call that go into one request.

    Attributes:
        call: the call.
        indices: indices of the conversations in the call.
        failing_since: `time.monotonic` of the first refusal; None if there was none.
    """

    call: ShardedCall
    indices: Sequence[int]
    failing_since: float | None = None

    @property
    def conversations(self) -> list[ChatJson]:
        """Conversations of the shard, in the order of `indices`."""
        return [self.call.conversations[index] for index in self.indices]


class ShardQueue:
    """Shards that wait for a connection. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[Shard] = deque()
        self._changed = threading.Condition()
        self.is_closed = threading.Event()

    def add(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Split a call into shards and append them to the queue."""
        shards = list(split_into_shards(conversations))
        call = ShardedCall(conversations, truncation, [None] * len(conversations), len(shards))
        with self._changed:
            self._waiting.extend(Shard(call, indices) for indices in shards)
            self._changed.notify_all()
        return call.future

    def take(self) -> Shard | None:
        """Wait for the next shard and return it; return None when the queue is closed."""
        with self._changed:
            while not self.is_closed.is_set():
                while self._waiting:
                    shard = self._waiting.popleft()
                    if _is_wanted(shard.call):
                        return shard
                self._changed.wait()
        return None

    def requeue(self, shard: Shard) -> None:
        """Put a refused shard back at the head of the queue."""
        with self._changed:
            self._waiting.appendleft(shard)
            self._changed.notify()

    def complete(self, shard: Shard, scored: ScoreBatchResult) -> None:
        """Set the results of a shard; the last shard resolves the call."""
        with self._changed:
            call = shard.call
            for index, result in zip(shard.indices, scored.results, strict=True):
                call.results[index] = result
            call.num_computed_tokens += scored.num_computed_tokens
            call.num_missing -= 1
            if call.num_missing or call.future.done():
                return
        results = [result for result in call.results if result is not None]
        call.future.set_result(ScoreBatchResult(results, call.num_computed_tokens))

    def fail(self, shard: Shard, error: RewardError) -> None:
        """Fail the call of a shard."""
        with self._changed:
            if not shard.call.future.done():
                shard.call.future.set_exception(error)

    def close(self) -> None:
        """Close the queue; connections end after their current request."""
        with self._changed:
            self.is_closed.set()
            self._changed.notify_all()


def split_into_shards(conversations: Sequence[ChatJson]) -> Iterator[list[int]]:
    """Yield the indices of each shard; conversations with equal beginnings come together."""
    texts = [json.dumps(conversation) for conversation in conversations]
    shard: list[int] = []
    size = 0
    for index in sorted(range(len(texts)), key=texts.__getitem__):
        if shard and (len(shard) == MAX_CONVERSATIONS or size + len(texts[index]) > MAX_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(index)
        size += len(texts[index])
    if shard:
        yield shard


def _is_wanted(call: ShardedCall) -> bool:
    if not call.is_begun:
        call.is_begun = True
        return call.future.set_running_or_notify_cancel()
    return not call.future.done()
