"""The simulated queue compared with the service's queue, at equal arrival rates.

The service's own `Dispatcher` runs in virtual time, with replicas that take exactly as long as in
the simulation. It orders requests by fair queueing and may send a batch ahead, so the latencies are
similar, not equal: within 7% for pairs, and for groups the service is faster, since it keeps
conversations that share a prompt together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from waiting import VirtualTime

from rm_core import BatchResult, Fingerprint, pack
from serve.capacity.fleet import build_request_sampler
from serve.capacity.load import Load
from serve.capacity.queueing import QueueModel, simulate
from serve.scheduler.dispatcher import Dispatcher

NUM_REQUESTS = 2_000
PAIRS = Load(1, 40, 40, 2)
GROUPS = Load(1, 40, 40, 8)
MODEL = QueueModel(4, 1, max_batch_tokens=600, token_s=1 / 600, batch_floor_s=0.05)
FINGERPRINT = Fingerprint("r", "t", "float32", "eager")


class Replicas:
    """Replicas that run one batch after another, each for the time of the simulation's model."""

    def __init__(self) -> None:
        self.num_replicas = MODEL.num_replicas
        self._free = asyncio.Semaphore(MODEL.num_replicas)

    async def run_batch(
        self, sequences: Sequence[tuple[int, ...]], backlog_tokens: int
    ) -> BatchResult:
        num_tokens = pack(sequences, 10**9).num_tokens
        seconds = max(MODEL.batch_floor_s, num_tokens * MODEL.token_s)
        async with self._free:
            await asyncio.sleep(seconds)
        return BatchResult((0.0,) * len(sequences), num_tokens, seconds, FINGERPRINT)


async def measure_latencies(load: Load, requests_per_s: float) -> list[float]:
    """Return the sorted latencies of the requests without the first tenth, in seconds."""
    loop, rng, sampler = asyncio.get_running_loop(), random.Random(1), build_request_sampler(load)
    backend: Any = Replicas()
    dispatcher = Dispatcher("m", backend)
    dispatcher.max_batch_tokens = MODEL.max_batch_tokens
    latencies = [0.0] * NUM_REQUESTS

    async def send(index: int) -> None:
        request = sampler(rng)
        prompt = tuple(rng.choices(range(10**6), k=request.prompt_tokens))
        ids = [prompt + tuple(rng.choices(range(10**6), k=n)) for n in request.responses]
        start = loop.time()
        with dispatcher.open_flow(str(index), 0) as flow:
            await dispatcher.compute_rewards(flow, ids)
        latencies[index] = loop.time() - start

    tasks = []
    for index in range(NUM_REQUESTS):
        await asyncio.sleep(rng.expovariate(requests_per_s))
        tasks.append(asyncio.create_task(send(index)))
    await asyncio.gather(*tasks)
    return sorted(latencies[NUM_REQUESTS // 10 :])


@pytest.mark.parametrize(
    ("load", "busy", "tolerances"),
    [(PAIRS, 0.4, (0.1, 0.15)), (PAIRS, 0.7, (0.15, 0.2)), (GROUPS, 0.7, (0.15, 0.35))],
)
def test_simulated_latencies_match_dispatcher(
    load: Load, busy: float, tolerances: tuple[float, float]
) -> None:
    requests_per_s = busy * MODEL.num_replicas / (load.group_tokens * MODEL.token_s)
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        measured = runner.run(measure_latencies(load, requests_per_s))
    simulated = [
        simulate(MODEL, build_request_sampler(load), requests_per_s, NUM_REQUESTS, seed).latencies_s
        for seed in range(4)
    ]
    for share, tolerance in zip((0.5, 0.95), tolerances, strict=True):
        quantiles = [latencies[int(share * len(latencies))] for latencies in simulated]
        expected = sum(quantiles) / len(quantiles)
        assert measured[int(share * len(measured))] == pytest.approx(expected, rel=tolerance)
