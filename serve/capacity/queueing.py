"""Latency of requests: a discrete-event simulation of gateways, one queue and replicas.

Requests arrive at random. A gateway handles its requests one after another, each for its CPU time;
then the request's conversations are queued. A free replica takes queued conversations in order, up
to its token budget, with a prompt counted once. A batch takes the time of its tokens, but at least
a floor. A request is answered with its last conversation. The simulation differs from the service
in two points: all gateways share one queue, and the queue is strictly first-in, first-out. Pure,
and deterministic for a seed.
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
    """A request: the tokens of a prompt and of its responses, and the progress of scoring.

    `cached` are the responses whose reward is in the score cache; they take time only in the
    gateway.
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
    """The capacity and the costs of the simulated service.

    Attributes:
        num_replicas: number of replicas of the model.
        num_gateways: number of gateways, each with one core.
        max_batch_tokens: maximum number of tokens in a batch; a longer conversation goes alone.
        token_s: seconds of a distinct token in a full batch.
        batch_floor_s: minimum seconds of a batch.
        hop_s: seconds from gateway to replica and back; the replica runs other batches meanwhile.
        request_cpu_s: CPU seconds of a gateway per request.
        conversation_cpu_s: CPU seconds of a gateway per conversation.
        token_cpu_s: CPU seconds of a gateway per token.
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
        """Return the CPU seconds of the gateway for a request."""
        num_conversations = len(request.responses) + len(request.cached)
        num_tokens = num_conversations * request.prompt_tokens
        num_tokens += sum(request.responses) + sum(request.cached)
        return (
            self.request_cpu_s
            + num_conversations * self.conversation_cpu_s
            + num_tokens * self.token_cpu_s
        )


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The result of one simulation, without its warm-up.

    Attributes:
        latencies_s: latencies of the requests, sorted.
        mean_batch_tokens: mean number of tokens in a batch.
        busy: share of the time in which a replica had a batch.
    """

    latencies_s: tuple[float, ...]
    mean_batch_tokens: float
    busy: float

    def percentile(self, share: float) -> float:
        """Return the seconds within which a share (0 to 1) of the requests was answered."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]

    @property
    def mean_s(self) -> float:
        """Mean latency in seconds."""
        return sum(self.latencies_s) / len(self.latencies_s)


def simulate(
    model: QueueModel, sampler: RequestSampler, requests_per_s: float, num_requests: int, seed: int
) -> SimulationResult:
    """Simulate a number of requests until the last one is answered.

    Args:
        model: simulated service.
        sampler: function that samples a request.
        requests_per_s: mean rate of requests; the times between requests are exponential.
        num_requests: number of requests; the first tenth is excluded from the result.
        seed: seed of the random numbers.
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
        # Ends of batches, and requests that leave their gateway: (time, sequence number, subject).
        self._events: list[
            tuple[float, int, SimulatedRequest | list[tuple[SimulatedRequest, int]]]
        ] = []
        self._num_events = 0
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
        latencies = [latency for _, latency in self._latencies[int(_WARM_UP * num_requests) :]]
        busy = self._busy_s / (max(now, self._last_s) * self._model.num_replicas)
        mean_tokens = sum(self._batch_tokens) / max(1, len(self._batch_tokens))
        return SimulationResult(tuple(sorted(latencies)), mean_tokens, busy)

    def _advance(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            time_s, _, subject = heapq.heappop(self._events)
            if not isinstance(subject, SimulatedRequest):
                self._finish_batch(time_s, subject)
            elif subject.num_unfinished:
                self._queue.append(subject)
            else:
                self._latencies.append((subject.arrival_s, time_s - subject.arrival_s))
            while self._num_idle and self._queue:
                self._start_batch(time_s)

    def _add_arrival(self, now: float) -> None:
        request = self._sampler(self._random)
        request.arrival_s = now
        gateway = self._random.randrange(self._model.num_gateways)
        done = max(now, self._gateway_free_s[gateway]) + self._model.compute_gateway_s(request)
        self._gateway_free_s[gateway] = done
        self._push_event(done, request)

    def _start_batch(self, now: float) -> None:
        batch, num_tokens = self._form_batch()
        self._num_idle -= 1
        self._batch_tokens.append(num_tokens)
        seconds = max(self._model.batch_floor_s, num_tokens * self._model.token_s)
        self._busy_s += seconds
        self._push_event(now + seconds, batch)

    def _form_batch(self) -> tuple[list[tuple[SimulatedRequest, int]], int]:
        batch: list[tuple[SimulatedRequest, int]] = []
        num_tokens = 0
        while self._queue:
            request = self._queue[0]
            first, prompt_tokens = request.num_started, request.prompt_tokens
            while request.num_started < len(request.responses):
                new_tokens = prompt_tokens + request.responses[request.num_started]
                if num_tokens and num_tokens + new_tokens > self._model.max_batch_tokens:
                    break
                num_tokens, prompt_tokens = num_tokens + new_tokens, 0
                request.num_started += 1
            if request.num_started > first:
                batch.append((request, request.num_started - first))
            if request.num_started < len(request.responses):
                break
            self._queue.popleft()
        return batch, num_tokens

    def _finish_batch(self, now: float, batch: list[tuple[SimulatedRequest, int]]) -> None:
        self._num_idle += 1
        self._last_s = now
        for request, num_responses in batch:
            request.num_unfinished -= num_responses
            if not request.num_unfinished:
                latency = now + self._model.hop_s - request.arrival_s
                self._latencies.append((request.arrival_s, latency))

    def _push_event(
        self, time_s: float, subject: SimulatedRequest | list[tuple[SimulatedRequest, int]]
    ) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time_s, self._num_events, subject))
