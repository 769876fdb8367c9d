"""The simulated queue beside the one that the service runs, at the same arrivals.

The service's own `Dispatcher` works in virtual time, before replicas that take exactly as long as
the simulation says. It takes posts in the order of a fair share and may send a batch ahead, so the
two are alike, not equal: within 7% for pairs, and for groups the service is faster, since it keeps
what shares a prompt together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from waiting import VirtualTime

from rm_core import Fingerprint, ScoredBatch, pack
from serve.capacity.fleet import build_request_sampler
from serve.capacity.load import Load
from serve.capacity.queueing import QueueModel, simulate
from serve.scheduler.dispatcher import Dispatcher
from serve.telemetry.events import NullObserver
from serve.worker.backends import BatchResult

POSTS = 2_000
PAIRS = Load(1, 40, 40, 2)
GROUPS = Load(1, 40, 40, 8)
STATION = QueueModel(4, 1, max_batch_tokens=600, token_s=1 / 600, batch_floor_s=0.05)
FINGERPRINT = Fingerprint("r", "t", "float32", "eager")


class Replicas:
    """Each does one batch after another, for as long as the station says."""

    def __init__(self) -> None:
        self.num_replicas = STATION.num_replicas
        self._free = asyncio.Semaphore(STATION.num_replicas)

    async def run_batch(
        self, sequences: Sequence[tuple[int, ...]], backlog_tokens: int
    ) -> BatchResult:
        num_tokens = pack(sequences, 10**9).num_tokens
        seconds = max(STATION.batch_floor_s, num_tokens * STATION.token_s)
        async with self._free:
            await asyncio.sleep(seconds)
        return BatchResult(ScoredBatch((0.0,) * len(sequences), num_tokens), seconds, FINGERPRINT)


async def latencies_of(load: Load, posts_per_s: float) -> list[float]:
    """Of the posts, sorted, without the first tenth."""
    loop, source, draw = asyncio.get_running_loop(), random.Random(1), build_request_sampler(load)
    backend: Any = Replicas()
    queue = Dispatcher("m", backend, NullObserver())
    queue.max_batch_tokens = STATION.max_batch_tokens
    latencies = [0.0] * POSTS

    async def post(index: int) -> None:
        drawn = draw(source)
        prompt = tuple(source.choices(range(10**6), k=drawn.prompt_tokens))
        ids = [prompt + tuple(source.choices(range(10**6), k=n)) for n in drawn.responses]
        start = loop.time()
        with queue.open_flow(str(index), 0) as flow:
            await queue.compute_rewards(flow, ids)
        latencies[index] = loop.time() - start

    tasks = []
    for index in range(POSTS):
        await asyncio.sleep(source.expovariate(posts_per_s))
        tasks.append(asyncio.create_task(post(index)))
    await asyncio.gather(*tasks)
    return sorted(latencies[POSTS // 10 :])


@pytest.mark.parametrize(
    ("load", "busy", "tolerances"),
    [(PAIRS, 0.4, (0.1, 0.15)), (PAIRS, 0.7, (0.15, 0.2)), (GROUPS, 0.7, (0.15, 0.35))],
)
def test_latencies_are_alike(load: Load, busy: float, tolerances: tuple[float, float]) -> None:
    posts_per_s = busy * STATION.num_replicas / (load.group_tokens * STATION.token_s)
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        served = runner.run(latencies_of(load, posts_per_s))
    simulated = [
        simulate(STATION, build_request_sampler(load), posts_per_s, POSTS, seed).latencies_s
        for seed in range(4)
    ]
    for share, tolerance in zip((0.5, 0.95), tolerances, strict=True):
        ours = sum(found[int(share * len(found))] for found in simulated) / len(simulated)
        assert served[int(share * len(served))] == pytest.approx(ours, rel=tolerance)
