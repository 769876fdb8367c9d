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

RequestSampler: TypeAlias = Callable[[random.Random], "SimulatedRequest"]


@dataclass(slots=True)
class SimulatedRequest:
    """A prompt with responses, by their tokens; what is left of it is counted down.

    `cached` are the responses whose reward is known: they cost the gateway, and nobody else.
    """

    prompt_tokens: int
    responses: Sequence[int]
    cached: Sequence[int] = ()
    arrival_s: float = 0.0
    num_started: int = 0
    num_unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_unfinished = len(self.responses)


@dataclass(frozen=True, slots=True)
class QueueModel:
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
    request_cpu_s: float = 0.0
    conversation_cpu_s: float = 0.0
    token_cpu_s: float = 0.0

    def compute_gateway_s(self, request: SimulatedRequest) -> float:
        """CPU of the gateway for a post."""
        number = len(request.responses) + len(request.cached)
        tokens = number * request.prompt_tokens + sum(request.responses) + sum(request.cached)
        return self.request_cpu_s + number * self.conversation_cpu_s + tokens * self.token_cpu_s


@dataclass(frozen=True, slots=True)
class SimulationResult:
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
    model: QueueModel, sampler: RequestSampler, requests_per_s: float, num_requests: int, seed: int
) -> SimulationResult:
    """Let posts come until that many did, and wait for the last answer.

    Args:
        station: what serves them.
        draw: makes a post.
        posts_per_s: on average; times between two are exponential.
        num_posts: how many; the first tenth is left out of the figures.
        seed: of all that is random.
    """
    return _Simulation(model, sampler, seed).run(requests_per_s, num_requests)


class _Simulation:
    def __init__(self, model: QueueModel, sampler: RequestSampler, seed: int) -> None:
        self._model = model
        self._sampler = sampler
        self._random = random.Random(seed)
        self._gateway_free_s = [0.0] * model.num_gateways
        self._num_idle = model.num_replicas
        self._queue: deque[SimulatedRequest] = deque()
        # Ends of batches and posts that leave their gateway: (time, number, what).
        self._events: list[
            tuple[float, int, SimulatedRequest | list[tuple[SimulatedRequest, int]]]
        ] = []
        self._number = 0
        self._latencies: list[tuple[float, float]] = []
        self._batch_tokens: list[int] = []
        self._busy_s = 0.0
        self._last_s = 0.0

    def run(self, requests_per_s: float, num_requests: int) -> SimulationResult:
        now = 0.0
        for _ in range(num_requests):
            now += self._random.expovariate(requests_per_s)
            self._advance(now)
            self._add_arrival(now)
        self._advance(float("inf"))
        self._latencies.sort()
        counted = [latency for _, latency in self._latencies[int(_WARM_UP * num_requests) :]]
        busy = self._busy_s / (max(now, self._last_s) * self._model.num_replicas)
        mean = sum(self._batch_tokens) / max(1, len(self._batch_tokens))
        return SimulationResult(tuple(sorted(counted)), mean, busy)

    def _advance(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            at, _, what = heapq.heappop(self._events)
            if not isinstance(what, SimulatedRequest):
                self._finish(at, what)
            elif what.num_unfinished:
                self._queue.append(what)
            else:
                self._latencies.append((what.arrival_s, at - what.arrival_s))
            while self._num_idle and self._queue:
                self._start(at)

    def _add_arrival(self, now: float) -> None:
        post = self._sampler(self._random)
        post.arrival_s = now
        gateway = self._random.randrange(self._model.num_gateways)
        done = max(now, self._gateway_free_s[gateway]) + self._model.compute_gateway_s(post)
        self._gateway_free_s[gateway] = done
        self._push(done, post)

    def _start(self, now: float) -> None:
        batch, tokens = self._next_batch()
        self._num_idle -= 1
        self._batch_tokens.append(tokens)
        seconds = max(self._model.batch_floor_s, tokens * self._model.token_s)
        self._busy_s += seconds
        self._push(now + seconds, batch)

    def _next_batch(self) -> tuple[list[tuple[SimulatedRequest, int]], int]:
        batch: list[tuple[SimulatedRequest, int]] = []
        tokens = 0
        while self._queue:
            post = self._queue[0]
            first, shared = post.num_started, post.prompt_tokens
            while post.num_started < len(post.responses):
                new = shared + post.responses[post.num_started]
                if tokens and tokens + new > self._model.max_batch_tokens:
                    break
                tokens, shared = tokens + new, 0
                post.num_started += 1
            if post.num_started > first:
                batch.append((post, post.num_started - first))
            if post.num_started < len(post.responses):
                break
            self._queue.popleft()
        return batch, tokens

    def _finish(self, now: float, batch: list[tuple[SimulatedRequest, int]]) -> None:
        self._num_idle += 1
        self._last_s = now
        for post, number in batch:
            post.num_unfinished -= number
            if not post.num_unfinished:
                latency = now + self._model.hop_s - post.arrival_s
                self._latencies.append((post.arrival_s, latency))

    def _push(self, at: float, what: SimulatedRequest | list[tuple[SimulatedRequest, int]]) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what))
