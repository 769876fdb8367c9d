"""A queue before replicas whose behaviour is known, for tests of what it does with batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from waiting import VirtualTime

from rm_core import Fingerprint, ScoredBatch, ScoreError, pack
from serve.scheduler.dispatcher import Dispatcher
from serve.scheduler.pending import DispatchResult
from serve.telemetry.events import BatchReport, NullObserver
from serve.worker.backends import BatchResult

Ids = tuple[int, ...]
FINGERPRINT = Fingerprint("r", "t", "float32", "eager")
BUDGET = 20


def reward_of(sequence: Ids) -> float:
    return float(hash(sequence))


class Replicas:
    """Records the batches it is given; each one waits while they are held."""

    def __init__(self, num_replicas: int = 1) -> None:
        self.num_replicas = num_replicas
        self.batches: list[list[Ids]] = []
        self.backlogs: list[int] = []
        self.num_computed_tokens = 0
        self.most_at_once = 0
        self.failure_at: Callable[[Sequence[Ids]], Exception | None] = lambda _: None
        self.failure_after: Callable[[], Exception | None] = lambda: None
        self.failure_before: Callable[[], Exception | None] = lambda: None
        self.go = asyncio.Event()
        self.go.set()
        self.running = 0

    async def run_batch(self, sequences: Sequence[Ids], backlog_tokens: int) -> BatchResult:
        self.batches.append(list(sequences))
        self.backlogs.append(backlog_tokens)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        if failure := self.failure_at(sequences):
            raise failure
        num_tokens = pack(sequences, 10**6).num_tokens
        self.num_computed_tokens += num_tokens
        return BatchResult(
            ScoredBatch(tuple(map(reward_of, sequences)), num_tokens), 0.0, FINGERPRINT
        )

    async def run_one_by_one(
        self, sequences: Sequence[Ids], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        await self.go.wait()
        if failure := self.failure_before():
            raise failure
        yield None
        for sequence in sequences:
            yield await self.run_batch([sequence], backlog_tokens)
        if failure := self.failure_after():
            raise failure

    async def describe(self) -> dict[str, Any]:
        return {"max_batch_tokens": BUDGET}

    async def refresh(self) -> None:
        return


class Counting(NullObserver):
    def __init__(self) -> None:
        self.reports: list[BatchReport] = []
        self.retries: list[tuple[str, int]] = []
        self.given_up = 0

    def record_batch(self, report: BatchReport) -> None:
        self.reports.append(report)

    def record_retry(self, model: str, reason: str, num_sequences: int) -> None:
        self.retries.append((reason, num_sequences))

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        self.given_up += num_sequences


class Line:
    """A queue before replicas, and what it told."""

    def __init__(self, num_replicas: int = 1, budget: int = BUDGET) -> None:
        self.replicas = Replicas(num_replicas)
        self.told = Counting()
        self.queue = Dispatcher("rm", self.replicas, self.told)
        self.queue.max_batch_tokens = budget

    def ask(
        self, *sequences: Ids, client: str = "a", priority: int = 0
    ) -> asyncio.Task[DispatchResult]:
        return asyncio.ensure_future(self._ask(sequences, client, priority))

    async def _ask(self, sequences: Sequence[Ids], client: str, priority: int) -> DispatchResult:
        with self.queue.open_flow(client, priority) as flow:
            return await self.queue.compute_rewards(flow, sequences)

    async def hold(self) -> asyncio.Task[DispatchResult]:
        """Every replica stands at a batch of one; what is asked now waits together."""
        self.replicas.go.clear()
        first = self.ask((99,))
        await until(lambda: len(self.replicas.batches) == 1)
        return first

    def release(self) -> None:
        self.replicas.go.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def rewards(answer: Awaitable[DispatchResult]) -> list[float | ScoreError]:
    async with asyncio.timeout(10):
        return list((await answer).batch.rewards)


def scenario(test: Callable[[Line], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test with a queue of its own, on an event loop of its own whose seconds are virtual."""

    def run() -> None:
        async def on_a_loop() -> None:
            line = Line()
            await test(line)
            await until(lambda: line.queue.num_in_flight == 0)
            assert line.queue.queued_tokens == line.queue.num_waiting == 0

        with asyncio.Runner(loop_factory=VirtualTime) as runner:
            runner.run(on_a_loop())

    run.__doc__ = test.__doc__
    return run
