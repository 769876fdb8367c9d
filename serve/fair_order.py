"""In which order the conversations that wait are taken: fair between requests and clients. Pure.

A request is a flow in the sense of fair queueing: what has been taken of it is counted in tokens,
and whoever has had least comes next, so that a small request does not wait behind a large one.
A client with many requests does not get more than one with a single one: a token counts as many
times as the client has requests waiting. Requests of a lower `priority` number go before all
others.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

_numbers = count()


@dataclass(eq=False, slots=True)
class Flow(Generic[T]):
    """What waits of one request.

    Attributes:
        client: who shares with whom; see the module.
        priority: lower goes first.
        waiting: in the order in which they are taken; may hold some that are not wanted any more.
        served: tokens that were taken of it, and what it did not ask for while others were served.
        num_taken: tokens that were taken of it.
        number: grows with age.
    """

    client: str
    priority: int = 0
    waiting: deque[T] = field(default_factory=deque)
    served: float = 0.0
    num_taken: int = 0
    number: int = field(default_factory=lambda: next(_numbers))


class FairOrder(Generic[T]):
    """The flows that have something waiting.

    Args:
        size_of: tokens of an item.
        wanted: whether an item is still to be taken.
    """

    def __init__(self, size_of: Callable[[T], int], wanted: Callable[[T], bool]) -> None:
        self._size_of = size_of
        self._wanted = wanted
        self._flows: dict[Flow[T], None] = {}
        self._num_flows: Counter[str] = Counter()  # by client
        self._now = 0.0  # what a flow that never had to wait would have been served

    def add(self, flow: Flow[T], items: list[T]) -> None:
        """Have items wait behind those of the same flow."""
        if items and flow not in self._flows:
            self._flows[flow] = None
            self._num_flows[flow.client] += 1
            # What it did not ask for in time it does not get later.
            flow.served = max(flow.served, self._now)
        flow.waiting.extend(items)

    def discard(self, flow: Flow[T]) -> None:
        """Forget a flow with all that waits of it."""
        flow.waiting.clear()
        self._remove(flow)

    def first(self, num_tokens: int) -> list[T]:
        """What is to be taken next, until it is of so many tokens; all of it if there is less."""
        heap = [
            (flow.priority, flow.served, flow.num_taken, flow.number, 0, flow)
            for flow in self._flows
            if self._trim(flow)
        ]
        heapq.heapify(heap)
        items: dict[T, None] = {}  # two flows may wait for the same one
        while heap and num_tokens > 0:
            priority, served, num_taken, number, place, flow = heap[0]
            item = flow.waiting[place]
            if self._wanted(item):
                size = self._size_of(item)
                if item not in items:
                    items[item] = None
                    num_tokens -= size
                served += self._cost(flow, size)
                num_taken += size
            if place + 1 < len(flow.waiting):
                entry = (priority, served, num_taken, number, place + 1, flow)
                heapq.heapreplace(heap, entry)
            else:
                heapq.heappop(heap)
        return list(items)

    def took(self, flow: Flow[T], item: T) -> None:
        """Count an item that was taken to the flow that it was taken for."""
        size = self._size_of(item)
        flow.num_taken += size
        flow.served += self._cost(flow, size)
        self._now += self._cost(flow, size) / max(1, len(self._flows))

    def _cost(self, flow: Flow[T], size: int) -> float:
        return size * max(1, self._num_flows[flow.client])

    def _trim(self, flow: Flow[T]) -> bool:
        """Drop what is not wanted from the front; whether anything is left."""
        while flow.waiting and not self._wanted(flow.waiting[0]):
            flow.waiting.popleft()
        return bool(flow.waiting)

    def settle(self) -> None:
        """Forget the flows of which nothing waits any more."""
        for flow in [flow for flow in self._flows if not self._trim(flow)]:
            self._remove(flow)
        # Whoever comes next must not have to wait for a past that nobody shares.
        if self._flows:
            self._now = max(self._now, min(flow.served for flow in self._flows))

    def _remove(self, flow: Flow[T]) -> None:
        if flow in self._flows:
            del self._flows[flow]
            self._num_flows[flow.client] -= 1
            if not self._num_flows[flow.client]:
                del self._num_flows[flow.client]
