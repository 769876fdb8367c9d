"""How long posts wait: a discrete-event simulation of gateways, one queue and replicas.

Posts come at random. A gateway takes each in turn for as long as its CPU needs, then its
conversations wait. Whenever a replica is free it gets what waits, in order, up to its budget, a
prompt counted once; a batch takes its tokens' time, and never less than a floor. A post is
answered with its last conversation. As in the service, except that here all gateways share one
queue and posts pass each other in no order but their own. Pure, and the same for the same seed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

_WARM_UP = 0.1

Draw: TypeAlias = Callable[[random.Random], "Post"]


@dataclass(slots=True)
class Post:
    """A prompt with responses, by their tokens; what is left of it is counted down.

    `cached` are the responses whose reward is known: they cost the gateway, and nobody else.
    """

    prompt_tokens: int
    responses: Sequence[int]
    cached: Sequence[int] = ()
    arrived_s: float = 0.0
    taken: int = 0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.responses)


@dataclass(frozen=True, slots=True)
class Station:
    """What there is to serve posts with.

    Attributes:
        num_replicas: copies of the model.
        num_gateways: each with one core.
        max_batch_tokens: of a batch; a longer conversation goes alone.
        token_s: seconds of a distinct token in a full batch.
        batch_floor_s: seconds of a batch, however small.
        hop_s: from gateway to replica and back; the replica works meanwhile.
        post_s: CPU of a gateway for a post.
        conversation_s: and for each of its conversations.
        gateway_token_s: and for each of their tokens.
    """

    num_replicas: int
    num_gateways: int
    max_batch_tokens: int
    token_s: float
    batch_floor_s: float = 0.0
    hop_s: float = 0.0
    post_s: float = 0.0
    conversation_s: float = 0.0
    gateway_token_s: float = 0.0

    def gateway_s(self, post: Post) -> float:
        """CPU of the gateway for a post."""
        number = len(post.responses) + len(post.cached)
        tokens = number * post.prompt_tokens + sum(post.responses) + sum(post.cached)
        return self.post_s + number * self.conversation_s + tokens * self.gateway_token_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one simulation, without its beginning.

    Attributes:
        latencies_s: of the posts, sorted.
        mean_batch_tokens: how full batches were.
        busy: share of the time in which a replica had a batch.
    """

    latencies_s: tuple[float, ...]
    mean_batch_tokens: float
    busy: float

    def percentile(self, share: float) -> float:
        """Seconds within which that share of the posts was answered."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]

    @property
    def mean_s(self) -> float:
        """Mean latency."""
        return sum(self.latencies_s) / len(self.latencies_s)


def simulate(
    station: Station, draw: Draw, posts_per_s: float, num_posts: int, seed: int
) -> Outcome:
    """Let posts come until that many did, and wait for the last answer.

    Args:
        station: what serves them.
        draw: makes a post.
        posts_per_s: on average; times between two are exponential.
        num_posts: how many; the first tenth is left out of the figures.
        seed: of all that is random.
    """
    return _Simulation(station, draw, seed).run(posts_per_s, num_posts)


class _Simulation:
    def __init__(self, station: Station, draw: Draw, seed: int) -> None:
        self._station = station
        self._draw = draw
        self._random = random.Random(seed)
        self._gateway_free_s = [0.0] * station.num_gateways
        self._idle = station.num_replicas
        self._waiting: deque[Post] = deque()
        # Ends of batches and posts that leave their gateway: (time, number, what).
        self._events: list[tuple[float, int, Post | list[tuple[Post, int]]]] = []
        self._number = 0
        self._latencies: list[tuple[float, float]] = []
        self._batch_tokens: list[int] = []
        self._busy_s = 0.0
        self._last_s = 0.0

    def run(self, posts_per_s: float, num_posts: int) -> Outcome:
        now = 0.0
        for _ in range(num_posts):
            now += self._random.expovariate(posts_per_s)
            self._until(now)
            self._arrive(now)
        self._until(float("inf"))
        self._latencies.sort()
        counted = [latency for _, latency in self._latencies[int(_WARM_UP * num_posts) :]]
        busy = self._busy_s / (max(now, self._last_s) * self._station.num_replicas)
        mean = sum(self._batch_tokens) / max(1, len(self._batch_tokens))
        return Outcome(tuple(sorted(counted)), mean, busy)

    def _until(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            at, _, what = heapq.heappop(self._events)
            if not isinstance(what, Post):
                self._finish(at, what)
            elif what.left:
                self._waiting.append(what)
            else:
                self._latencies.append((what.arrived_s, at - what.arrived_s))
            while self._idle and self._waiting:
                self._start(at)

    def _arrive(self, now: float) -> None:
        post = self._draw(self._random)
        post.arrived_s = now
        gateway = self._random.randrange(self._station.num_gateways)
        done = max(now, self._gateway_free_s[gateway]) + self._station.gateway_s(post)
        self._gateway_free_s[gateway] = done
        self._push(done, post)

    def _start(self, now: float) -> None:
        batch, tokens = self._next_batch()
        self._idle -= 1
        self._batch_tokens.append(tokens)
        seconds = max(self._station.batch_floor_s, tokens * self._station.token_s)
        self._busy_s += seconds
        self._push(now + seconds, batch)

    def _next_batch(self) -> tuple[list[tuple[Post, int]], int]:
        batch: list[tuple[Post, int]] = []
        tokens = 0
        while self._waiting:
            post = self._waiting[0]
            first, shared = post.taken, post.prompt_tokens
            while post.taken < len(post.responses):
                new = shared + post.responses[post.taken]
                if tokens and tokens + new > self._station.max_batch_tokens:
                    break
                tokens, shared = tokens + new, 0
                post.taken += 1
            if post.taken > first:
                batch.append((post, post.taken - first))
            if post.taken < len(post.responses):
                break
            self._waiting.popleft()
        return batch, tokens

    def _finish(self, now: float, batch: list[tuple[Post, int]]) -> None:
        self._idle += 1
        self._last_s = now
        for post, number in batch:
            post.left -= number
            if not post.left:
                latency = now + self._station.hop_s - post.arrived_s
                self._latencies.append((post.arrived_s, latency))

    def _push(self, at: float, what: Post | list[tuple[Post, int]]) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what))
