"""A queue that is fair between clients and between the requests of a client. Pure.

Imagine that all requests were served at the same time, each client with an equal share of the
tokens and each of its requests with an equal share of that. The queue serves each burst of a
request as a whole, in the order in which the bursts would finish in that model (the "fair sojourn
protocol" of Friedman and Henderson, SIGMETRICS 2003). So no burst finishes later than if the model
were shared, a small request passes a large one, equal requests keep their order of arrival, and a
client gains nothing by sending many requests. Requests with a lower `priority` value go before the
other requests of their client; other clients are not affected.
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
    """Pending items of one request.

    Attributes:
        client: client of the request; clients have equal shares.
        priority: requests with a lower value go first among those of the client.
        bursts: items that were added together, each burst with the virtual time at which it would
            finish.
        finish_time: virtual time at which the last burst would finish.
        num_tokens: tokens that the request asked for and has not received; the owner of the
            queue updates it.
        is_over: whether the request has ended.
        number: sequence number; older flows have lower numbers.
    """

    client: str
    priority: int = 0
    bursts: deque[tuple[float, deque[T]]] = field(default_factory=deque)
    finish_time: float = 0.0
    num_tokens: int = 0
    is_over: bool = False
    number: int = field(default_factory=lambda: next(_numbers))


class FairQueue(Generic[T]):
    """Flows with pending items.

    Args:
        get_size: returns the number of tokens of an item.
        is_pending: returns whether an item is still to be dispatched.
    """

    def __init__(self, get_size: Callable[[T], int], is_pending: Callable[[T], bool]) -> None:
        self._get_size = get_size
        self._is_pending = is_pending
        self._flows: dict[Flow[T], None] = {}
        self._num_flows: Counter[str] = Counter()  # by client
        # Tokens that each client with one request would have got.
        self._virtual_time = 0.0

    def add(self, flow: Flow[T], items: Sequence[T]) -> None:
        """Add a burst of items behind those of the same flow."""
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
        """Forget a flow and all of its items."""
        flow.bursts.clear()
        self._remove(flow)

    def peek(self, num_tokens: int, get_size: Callable[[T], int] | None = None) -> list[T]:
        """Return the next items until they have so many tokens, or all items if they have fewer.

        Args:
            num_tokens: number of tokens.
            get_size: returns how many of these tokens an item takes; by default all of its tokens.
        """
        get_size = get_size or self._get_size
        self.prune()
        flows: dict[str, list[tuple[int, float, int, int, Flow[T]]]] = {}
        for flow in self._flows:
            head = (flow.priority, flow.bursts[0][0], flow.number, 0, flow)
            flows.setdefault(flow.client, []).append(head)
        for heads in flows.values():
            heapq.heapify(heads)
        # A client's turn is that of its first request.
        clients = [(heads[0][1], heads[0][2], client) for client, heads in flows.items()]
        heapq.heapify(clients)
        items: dict[T, None] = {}  # one item may be in two flows
        while clients and num_tokens > 0:
            heads = flows[clients[0][2]]
            priority, _, number, index, flow = heads[0]
            for item in flow.bursts[index][1]:
                if num_tokens > 0 and item not in items and self._is_pending(item):
                    items[item] = None
                    num_tokens -= get_size(item)
            if index + 1 < len(flow.bursts):
                head = (priority, flow.bursts[index + 1][0], number, index + 1, flow)
                heapq.heapreplace(heads, head)
            else:
                heapq.heappop(heads)
            if heads:
                heapq.heapreplace(clients, (heads[0][1], heads[0][2], clients[0][2]))
            else:
                heapq.heappop(clients)
        return list(items)

    def mark_dispatched(self, item: T) -> None:
        """Advance the virtual time by an item that was dispatched."""
        self._virtual_time += self._get_size(item) / max(1, len(self._num_flows))

    def prune(self) -> None:
        """Forget the flows without pending items."""
        is_pending = self._is_pending
        # There may be a thousand flows, and most have a pending item at their front.
        stale = [f for f in self._flows if not (f.bursts and is_pending(f.bursts[0][1][0]))]
        for flow in stale:
            if not self._trim(flow):
                self._remove(flow)

    def _trim(self, flow: Flow[T]) -> bool:
        """Drop items that are not pending from the front; return whether any item is left."""
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
