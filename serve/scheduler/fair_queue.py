"""In which order the conversations that wait are taken: fair between requests and clients. Pure.

Imagine that all requests were served at the same time, each client with an equal share of the
tokens and each of its requests with an equal share of that. What a request asked for at once is
taken as a whole, in the order in which it would be done then (the "fair sojourn protocol" of
Friedman and Henderson, SIGMETRICS 2003). So nothing is done later than if the model were shared,
a small request passes a large one, equal ones keep the order in which they came, and a client gains
nothing by sending many. Requests of a lower `priority` number go before the others of their client;
other clients do not notice.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
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
        priority: lower goes first among those of the client.
        parts: what was asked for at once, each with the virtual time at which it would be done.
        done_at: the same time of the last of them.
        num_tokens: of what it asked for and has not got; kept by whoever gives it.
        is_over: whether nobody waits for it any more.
        number: grows with age.
    """

    client: str
    priority: int = 0
    bursts: deque[tuple[float, deque[T]]] = field(default_factory=deque)
    finish_time: float = 0.0
    num_tokens: int = 0
    is_over: bool = False
    number: int = field(default_factory=lambda: next(_numbers))


class FairQueue(Generic[T]):
    """The flows that have something waiting.

    Args:
        size_of: tokens of an item.
        wanted: whether an item is still to be taken.
    """

    def __init__(self, get_size: Callable[[T], int], is_pending: Callable[[T], bool]) -> None:
        self._get_size = get_size
        self._is_pending = is_pending
        self._flows: dict[Flow[T], None] = {}
        self._num_flows: Counter[str] = Counter()  # by client
        self._virtual_time = (
            0.0  # virtual time: tokens that each client with one request would have got
        )

    def add(self, flow: Flow[T], items: Sequence[T]) -> None:
        """Have items wait behind those of the same flow."""
        if not items:
            return
        if flow not in self._flows:
            self._flows[flow] = None
            self._num_flows[flow.client] += 1
        size = sum(map(self._get_size, items))
        flow.finish_time = (
            max(flow.finish_time, self._virtual_time) + size * self._num_flows[flow.client]
        )
        flow.bursts.append((flow.finish_time, deque(items)))

    def discard(self, flow: Flow[T]) -> None:
        """Forget a flow with all that waits of it."""
        flow.bursts.clear()
        self._remove(flow)

    def peek(self, num_tokens: int) -> list[T]:
        """What is to be taken next, until it is of so many tokens; all of it if there is less."""
        self.prune()
        flows: dict[str, list[tuple[int, float, int, int, Flow[T]]]] = {}
        for flow in self._flows:
            head = (flow.priority, flow.bursts[0][0], flow.number, 0, flow)
            flows.setdefault(flow.client, []).append(head)
        for own in flows.values():
            heapq.heapify(own)
        # A client's turn is that of the request which it wants first.
        clients = [(own[0][1], own[0][2], client) for client, own in flows.items()]
        heapq.heapify(clients)
        items: dict[T, None] = {}  # two flows may wait for the same one
        while clients and num_tokens > 0:
            own = flows[clients[0][2]]
            priority, _, number, place, flow = own[0]
            for item in flow.bursts[place][1]:
                if num_tokens > 0 and item not in items and self._is_pending(item):
                    items[item] = None
                    num_tokens -= self._get_size(item)
            if place + 1 < len(flow.bursts):
                head = (priority, flow.bursts[place + 1][0], number, place + 1, flow)
                heapq.heapreplace(own, head)
            else:
                heapq.heappop(own)
            if own:
                heapq.heapreplace(clients, (own[0][1], own[0][2], clients[0][2]))
            else:
                heapq.heappop(clients)
        return list(items)

    def mark_dispatched(self, item: T) -> None:
        """An item was taken."""
        self._virtual_time += self._get_size(item) / max(1, len(self._num_flows))

    def prune(self) -> None:
        """Forget the flows of which nothing waits any more."""
        wanted = self._is_pending
        # There may be a thousand flows, and most have what is wanted at their front.
        found = [f for f in self._flows if not (f.bursts and wanted(f.bursts[0][1][0]))]
        for flow in found:
            if not self._trim(flow):
                self._remove(flow)

    def _trim(self, flow: Flow[T]) -> bool:
        """Drop what is not wanted from the front; whether anything is left."""
        while flow.bursts:
            items = flow.bursts[0][1]
            while items and not self._is_pending(items[0]):
                items.popleft()
            if items:
                return True
            flow.bursts.popleft()
        return False

    def _remove(self, flow: Flow[T]) -> None:
        if flow in self._flows:
            del self._flows[flow]
            self._num_flows[flow.client] -= 1
            if not self._num_flows[flow.client]:
                del self._num_flows[flow.client]
