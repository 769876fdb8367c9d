"""The worker: real threads, packing ahead, and failures that make a replica unhealthy."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forward_stub import ForwardStub
from waiting import PATIENCE_S, settle, until_async

from rm_core import BatchConfig, ModelConfig, RewardScorer, ScoreError
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree, TokenIds
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.worker.worker import BatchWatchdog, Worker

ScorerOf = Callable[..., RewardScorer]
MakeWorker = Callable[..., Worker]


def encode(scorer: RewardScorer, answer: str) -> TokenIds:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}]
    return scorer.encoder.encode(messages).input_ids


@pytest.fixture
def forward() -> ForwardStub:
    return ForwardStub()


@pytest.fixture
def scorer(scorer_of: ScorerOf, forward: ForwardStub) -> RewardScorer:
    # Without a prefix cache, equal batches have results that are equal to the bit.
    return RewardScorer(scorer_of("qwen3").loaded_model, BatchConfig(prefix_cache_bytes=0), forward)


@pytest.fixture
def make_worker() -> Iterator[MakeWorker]:
    made: list[Worker] = []

    def make(*args: Any) -> Worker:
        made.append(Worker(*args))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


class Gate:
    """A forward pass that waits until the gate opens, and records its sequences."""

    def __init__(self, forward: ForwardStub) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.seen: list[TokenIds] = []
        forward.run = self

    def __call__(self, loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        self.seen += tree.sequences
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return forward_batch(loaded, tree, *rest)


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)


def test_worker_results_are_plain_data_and_equal_scorer(
    scorer: RewardScorer, make_worker: MakeWorker
) -> None:
    worker = make_worker(scorer)
    sequences = [encode(scorer, str(i)) for i in range(5)]
    result = asyncio.run(worker.run_batch(sequences))
    assert result == scorer.score_ids(sequences)
    assert result.inference_s > 0
    assert result.fingerprint == scorer.fingerprint
    assert pickle.loads(pickle.dumps(result)) == result
    assert asyncio.run(worker.describe()) == scorer.describe()


def test_next_batch_is_packed_while_device_is_busy(
    scorer: RewardScorer,
    make_worker: MakeWorker,
    forward: ForwardStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = make_worker(scorer)
    gate = Gate(forward)
    packed = threading.Event()
    first, second = [encode(scorer, "4")], [encode(scorer, "5")]
    prepare = scorer.pack

    def watched(sequences: Any, *rest: Any) -> Any:
        packing = prepare(sequences, *rest)
        if list(sequences) == second:
            packed.set()
        return packing

    monkeypatch.setattr(scorer, "pack", watched)

    async def both() -> None:
        running = asyncio.ensure_future(worker.run_batch(first))
        await reached(gate)
        queued = asyncio.ensure_future(worker.run_batch(second))
        assert await asyncio.to_thread(packed.wait, PATIENCE_S)
        assert gate.seen == first
        gate.open.set()
        await asyncio.gather(running, queued)

    asyncio.run(both())
    assert gate.seen == first + second


def test_run_one_by_one_runs_sequences_without_other_batches_between(
    scorer: RewardScorer, make_worker: MakeWorker, forward: ForwardStub
) -> None:
    worker = make_worker(scorer)
    first, *suspects, last = (encode(scorer, str(i)) for i in range(5))
    expected = [scorer.score_ids([suspect]) for suspect in suspects]
    gate = Gate(forward)

    async def scenario() -> None:
        running = asyncio.ensure_future(worker.run_batch([first]))
        await reached(gate)
        results = worker.run_one_by_one(suspects)
        begun = asyncio.ensure_future(anext(results))
        await settle()  # the suspects are queued
        queued = asyncio.ensure_future(worker.run_batch([last]))
        await settle()
        assert not begun.done()  # the device runs another batch
        gate.open.set()
        assert await begun is None
        collected = [result async for result in results]
        assert collected == expected
        await asyncio.gather(running, queued)

    asyncio.run(scenario())
    assert gate.seen[:5] == [first, *suspects, last]


def test_cancelled_batch_never_reaches_device(
    scorer: RewardScorer, make_worker: MakeWorker, forward: ForwardStub
) -> None:
    worker = make_worker(scorer)
    gate = Gate(forward)
    first, second, third = ([encode(scorer, text)] for text in ("4", "5", "6"))

    async def three() -> None:
        runs = [asyncio.ensure_future(worker.run_batch(batch)) for batch in (first, second, third)]
        await reached(gate)
        # All batches are packed and queued for the device.
        await until_async(lambda: worker._device_thread._work_queue.qsize() == 2)
        runs[1].cancel()
        await asyncio.wait([runs[1]])
        gate.open.set()
        await asyncio.gather(runs[0], runs[2])

    asyncio.run(three())
    assert gate.seen == first + third


def test_stuck_batch_fails_waiting_calls_and_health_check(
    scorer: RewardScorer,
    make_worker: MakeWorker,
    forward: ForwardStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serve.worker.worker._POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr("serve.worker.worker.time.perf_counter", lambda: clock.now)
    worker = make_worker(scorer, 60.0)
    gate = Gate(forward)

    async def stuck() -> None:
        running = asyncio.ensure_future(worker.run_batch([encode(scorer, "4")]))
        await reached(gate)
        worker.check_health()  # not yet
        queued = asyncio.ensure_future(worker.run_batch([encode(scorer, "5")]))
        await until_async(lambda: worker._device_thread._work_queue.qsize() == 1)
        assert not running.done()
        clock.now = 61.0
        outcomes = await asyncio.gather(running, queued, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            ReplicaLostError,
            ReplicaBusyError,
        ]
        with pytest.raises(ReplicaLostError, match=r"a batch of \d+ tokens has run for 61 s"):
            worker.check_health()
        with pytest.raises(ReplicaLostError):
            await worker.describe()
        gate.open.set()
        await asyncio.to_thread(worker._device_thread.submit(int).result)
        worker.check_health()  # the batch was only slow

    asyncio.run(stuck())
    assert len(gate.seen) == 1


def test_watchdog_observes_only_scored_batches(
    scorer: RewardScorer,
    make_worker: MakeWorker,
    forward: ForwardStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed: list[int] = []
    monkeypatch.setattr(
        BatchWatchdog, "observe", lambda _, number, seconds: observed.append(number)
    )
    worker = make_worker(scorer)
    probe = scorer.probe().num_tokens
    assert observed == [probe]
    result = asyncio.run(worker.run_batch([encode(scorer, "4"), encode(scorer, "5")]))
    assert observed == [probe, result.num_computed_tokens]

    def failing(*_: Any) -> list[float]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    forward.run = failing
    with pytest.raises(ReplicaLostError):
        asyncio.run(worker.run_batch([encode(scorer, "6")]))
    assert len(observed) == 2
    worker.watchdog.stuck_after_s = 1e-9
    assert worker.watchdog.stall_reason() is None  # nothing is on the device any more


def test_dead_thread_makes_worker_unhealthy(scorer: RewardScorer, make_worker: MakeWorker) -> None:
    worker = make_worker(scorer)
    worker._device_thread.shutdown()
    with pytest.raises(ReplicaLostError, match="its thread ended"):
        worker.check_health()
    with pytest.raises(ReplicaBusyError):
        asyncio.run(worker.run_batch([encode(scorer, "4")]))


def test_failed_device_is_not_used_again(
    scorer: RewardScorer, make_worker: MakeWorker, forward: ForwardStub
) -> None:
    worker = make_worker(scorer)
    calls: list[int] = []

    def failing(_loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        calls.append(len(tree.sequences))
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    forward.run = failing
    batch = [encode(scorer, str(i)) for i in range(8)]
    with pytest.raises(ReplicaLostError, match="illegal memory access"):
        asyncio.run(worker.run_batch(batch))
    with pytest.raises(ReplicaLostError, match="illegal memory access"):
        worker.check_health()
    with pytest.raises(ReplicaBusyError):
        asyncio.run(worker.run_batch(batch))
    assert calls == [8]


@pytest.mark.parametrize("value", [math.nan, RuntimeError("CUDA error: CUBLAS_STATUS_NOT_THERE")])
def test_failing_conversation_leaves_worker_healthy(
    value: Any, scorer: RewardScorer, make_worker: MakeWorker, forward: ForwardStub
) -> None:
    worker = make_worker(scorer)
    good, bad = encode(scorer, "4"), encode(scorer, "5")

    def overflowing(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        if bad in tree.sequences and isinstance(value, Exception):
            raise value
        logits = forward_batch(loaded, tree, *rest)
        return [value if s == bad else x for s, x in zip(tree.sequences, logits, strict=True)]

    forward.run = overflowing
    for _ in range(3):
        first, second = asyncio.run(worker.run_batch([good, bad])).outputs
        assert isinstance(first, float)
        assert isinstance(second, ScoreError)
        worker.check_health()


@pytest.mark.parametrize(
    ("value", "says"), [(math.nan, "returned nan"), (0.5, "now and was")], ids=["NaN", "another"]
)
def test_corrupted_weights_make_worker_unhealthy(
    value: float,
    says: str,
    copy_of: Callable[..., Path],
    make_worker: MakeWorker,
) -> None:
    forward = ForwardStub()
    scorer = RewardScorer.load(ModelConfig(str(copy_of()), device="cpu"), forward=forward)
    worker = make_worker(scorer)
    bad = encode(scorer, "5")
    with torch.no_grad():
        scorer.loaded_model.head.row.add_(value)  # type: ignore[attr-defined]

    def overflowing(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        logits = forward_batch(loaded, tree, *rest)
        return [math.inf if s == bad else x for s, x in zip(tree.sequences, logits, strict=True)]

    forward.run = overflowing
    with pytest.raises(ReplicaLostError, match=says):
        asyncio.run(worker.run_batch([encode(scorer, "4"), bad]))
    with pytest.raises(ReplicaLostError, match=says):
        worker.check_health()
