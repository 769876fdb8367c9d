"""A dispatcher with fake replicas whose behavior a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from waiting import VirtualTime

from rm_core import BatchResult, Fingerprint, ModelInfo, ScoreError, pack
from serve.errors import RetryReason
from serve.scheduler.dispatcher import Dispatcher
from serve.scheduler.pending import RequestFlow
from serve.telemetry.metrics import Metrics

Ids = tuple[int, ...]
FINGERPRINT = Fingerprint("r", "t", "float32", "eager")
BUDGET = 20


def reward_of(sequence: Ids) -> float:
    return float(hash(sequence))


class FakeReplicas:
    """Replicas that record their batches and hold them while `go` is not set."""

    def __init__(self, num_replicas: int = 1) -> None:
        self.num_replicas = num_replicas
        self.batches: list[list[Ids]] = []
        self.backlogs: list[int] = []
        self.num_computed_tokens = 0
        self.max_running = 0
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
        self.max_running = max(self.max_running, self.running)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        if failure := self.failure_at(sequences):
            raise failure
        num_tokens = pack(sequences, 10**6).num_tokens
        self.num_computed_tokens += num_tokens
        return BatchResult(tuple(map(reward_of, sequences)), num_tokens, 0.0, FINGERPRINT)

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

    async def describe(self) -> ModelInfo:
        raise NotImplementedError

    async def refresh(self) -> None:
        return


class RecordingMetrics(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[BatchResult, list[float]]] = []
        self.retries: list[tuple[str, int]] = []
        self.num_abandoned = 0

    def record_batch(
        self,
        model: str,
        result: BatchResult,
        *,
        num_conversations: int,
        max_batch_tokens: int,
        queue_durations_s: Iterable[float],
        elapsed_s: float,
    ) -> None:
        self.batches.append((result, list(queue_durations_s)))

    def record_retry(self, model: str, reason: RetryReason, num_sequences: int) -> None:
        self.retries.append((reason, num_sequences))

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        self.num_abandoned += num_sequences


class Scored(NamedTuple):
    """Rewards of a request, in order, and its flow with their cost."""

    rewards: list[float | ScoreError]
    flow: RequestFlow


class DispatcherHarness:
    """A dispatcher, its fake replicas and its metrics."""

    def __init__(self, num_replicas: int = 1, budget: int = BUDGET) -> None:
        self.replicas = FakeReplicas(num_replicas)
        self.metrics = RecordingMetrics()
        self.dispatcher = Dispatcher("rm", self.replicas, self.metrics)
        self.dispatcher.max_batch_tokens = budget

    def submit(self, *sequences: Ids, client: str = "a", priority: int = 0) -> asyncio.Task[Scored]:
        return asyncio.ensure_future(self._submit(sequences, client, priority))

    async def _submit(self, sequences: Sequence[Ids], client: str, priority: int) -> Scored:
        with self.dispatcher.open_flow(client, priority) as flow:
            return Scored(await self.dispatcher.compute_outputs(flow, sequences), flow)

    async def hold(self) -> asyncio.Task[Scored]:
        """Hold a batch of one sequence on the replica, so that later requests queue together."""
        self.replicas.go.clear()
        first_batch = self.submit((99,))
        await until(lambda: len(self.replicas.batches) == 1)
        return first_batch

    def release(self) -> None:
        self.replicas.go.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def rewards(answer: Awaitable[Scored]) -> list[float | ScoreError]:
    async with asyncio.timeout(10):
        return (await answer).rewards


def scenario(test: Callable[[DispatcherHarness], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test with its own harness, on its own event loop with virtual time."""

    def run() -> None:
        async def run_test() -> None:
            harness = DispatcherHarness()
            await test(harness)
            await until(lambda: harness.dispatcher.num_in_flight == 0)
            assert harness.dispatcher.queued_tokens == harness.dispatcher.num_waiting == 0

        with asyncio.Runner(loop_factory=VirtualTime) as runner:
            runner.run(run_test())

    run.__doc__ = test.__doc__
    return run
