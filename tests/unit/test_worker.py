"""The engine: real threads, packing ahead, and what makes a replica unhealthy."""

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
from waiting import PATIENCE_S, settle, until_async

from rm_core import ModelConfig, RewardScorer, ScoreError
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree, TokenIds
from serve.errors import ReplicaRejectedBatchError, ReplicaUnhealthyError
from serve.worker.watchdog import BatchWatchdog
from serve.worker.worker import Worker

ScorerOf = Callable[..., RewardScorer]
Make = Callable[..., Worker]


def talk(scorer: RewardScorer, answer: str) -> TokenIds:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}]
    return scorer.encoder.encode(messages).input_ids


@pytest.fixture
def scorer(scorer_of: ScorerOf) -> RewardScorer:
    return scorer_of("qwen3")


@pytest.fixture
def engine_of() -> Iterator[Make]:
    made: list[Worker] = []

    def make(*args: Any) -> Worker:
        made.append(Worker(*args))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Gate:
    """A forward pass that waits until it is let through, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.seen: list[TokenIds] = []
        monkeypatch.setattr("rm_core.scorer.forward_batch", self)

    def __call__(self, loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        self.seen += tree.sequences
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return forward_batch(loaded, tree)


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)


def test_worker_results_are_plain_data_and_equal_scorer(
    scorer: RewardScorer, engine_of: Make
) -> None:
    engine = engine_of(scorer)
    sequences = [talk(scorer, str(i)) for i in range(5)]
    answer = asyncio.run(engine.run_batch(sequences))
    assert answer.batch == scorer.score_ids(sequences)
    assert answer.inference_s > 0
    assert answer.fingerprint["attention"] == "sdpa"
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert engine.describe() == scorer.describe()


def test_next_batch_is_packed_while_device_is_busy(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(scorer)
    gate = Gate(monkeypatch)
    packed = threading.Event()
    first, second = [talk(scorer, "4")], [talk(scorer, "5")]
    prepare = scorer.pack

    def watched(sequences: Any) -> Any:
        packing = prepare(sequences)
        if list(sequences) == second:
            packed.set()
        return packing

    monkeypatch.setattr(scorer, "pack", watched)

    async def both() -> None:
        running = asyncio.ensure_future(engine.run_batch(first))
        await reached(gate)
        queued = asyncio.ensure_future(engine.run_batch(second))
        assert await asyncio.to_thread(packed.wait, PATIENCE_S)
        assert gate.seen == first
        gate.open.set()
        await asyncio.gather(running, queued)

    asyncio.run(both())
    assert gate.seen == first + second


def test_run_one_by_one_runs_sequences_without_other_batches_between(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(scorer)
    first, *suspects, last = (talk(scorer, str(i)) for i in range(5))
    expected = [scorer.score_ids([suspect]) for suspect in suspects]
    gate = Gate(monkeypatch)

    async def scenario() -> None:
        running = asyncio.ensure_future(engine.run_batch([first]))
        await reached(gate)
        answers = engine.run_one_by_one(suspects)
        begun = asyncio.ensure_future(anext(answers))
        await settle()  # the suspects stand in line
        queued = asyncio.ensure_future(engine.run_batch([last]))
        await settle()
        assert not begun.done()  # the device is at another batch
        gate.open.set()
        assert await begun is None
        found = [answer async for answer in answers]
        assert [answer and answer.batch for answer in found] == expected
        await asyncio.gather(running, queued)

    asyncio.run(scenario())
    assert gate.seen[:5] == [first, *suspects, last]


def test_cancelled_batch_never_reaches_device(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(scorer)
    gate = Gate(monkeypatch)
    first, second, third = ([talk(scorer, text)] for text in ("4", "5", "6"))

    async def three() -> None:
        runs = [asyncio.ensure_future(engine.run_batch(batch)) for batch in (first, second, third)]
        await reached(gate)
        # All are packed and stand before the device.
        await until_async(lambda: engine._device_thread._work_queue.qsize() == 2)
        runs[1].cancel()
        await asyncio.wait([runs[1]])
        gate.open.set()
        await asyncio.gather(runs[0], runs[2])

    asyncio.run(three())
    assert gate.seen == first + third


def test_stuck_batch_fails_waiting_calls_and_health_check(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serve.worker.worker._POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr("serve.worker.watchdog.time.perf_counter", lambda: clock.now)
    engine = engine_of(scorer, 60.0)
    gate = Gate(monkeypatch)

    async def stuck() -> None:
        running = asyncio.ensure_future(engine.run_batch([talk(scorer, "4")]))
        await reached(gate)
        engine.check_health()  # not yet
        queued = asyncio.ensure_future(engine.run_batch([talk(scorer, "5")]))
        await until_async(lambda: engine._device_thread._work_queue.qsize() == 1)
        assert not running.done()
        clock.now = 61.0
        outcomes = await asyncio.gather(running, queued, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            ReplicaUnhealthyError,
            ReplicaRejectedBatchError,
        ]
        with pytest.raises(ReplicaUnhealthyError, match=r"a batch of \d+ tokens has run for 61 s"):
            engine.check_health()
        with pytest.raises(ReplicaUnhealthyError):
            engine.describe()
        gate.open.set()
        await asyncio.to_thread(engine._device_thread.submit(int).result)
        engine.check_health()  # it was slow, no more

    asyncio.run(stuck())
    assert len(gate.seen) == 1


def test_watchdog_observes_only_scored_batches(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[int] = []
    monkeypatch.setattr(BatchWatchdog, "observe", lambda _, number, seconds: learnt.append(number))
    engine = engine_of(scorer)
    probe = scorer.probe().num_tokens
    assert learnt == [probe]
    answer = asyncio.run(engine.run_batch([talk(scorer, "4"), talk(scorer, "5")]))
    assert learnt == [probe, answer.batch.num_computed_tokens]

    def failing(*_: Any) -> list[float]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("rm_core.scorer.forward_batch", failing)
    with pytest.raises(ReplicaUnhealthyError):
        asyncio.run(engine.run_batch([talk(scorer, "6")]))
    assert len(learnt) == 2
    engine.watchdog.stuck_after_s = 1e-9
    assert engine.watchdog.stall_reason() is None  # nothing is on the device any more


def test_dead_thread_makes_worker_unhealthy(scorer: RewardScorer, engine_of: Make) -> None:
    engine = engine_of(scorer)
    engine._device_thread.shutdown()
    with pytest.raises(ReplicaUnhealthyError, match="its thread ended"):
        engine.check_health()
    with pytest.raises(ReplicaRejectedBatchError):
        asyncio.run(engine.run_batch([talk(scorer, "4")]))


def test_failed_device_is_not_used_again(
    scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(scorer)
    calls: list[int] = []

    def failing(_loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        calls.append(len(tree.sequences))
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("rm_core.scorer.forward_batch", failing)
    batch = [talk(scorer, str(i)) for i in range(8)]
    with pytest.raises(ReplicaUnhealthyError, match="illegal memory access"):
        asyncio.run(engine.run_batch(batch))
    with pytest.raises(ReplicaUnhealthyError, match="illegal memory access"):
        engine.check_health()
    with pytest.raises(ReplicaRejectedBatchError):
        asyncio.run(engine.run_batch(batch))
    assert calls == [8]


@pytest.mark.parametrize("value", [math.nan, RuntimeError("CUDA error: CUBLAS_STATUS_NOT_THERE")])
def test_failing_conversation_leaves_worker_healthy(
    value: Any, scorer: RewardScorer, engine_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(scorer)
    good, poison = talk(scorer, "4"), talk(scorer, "5")

    def overflowing(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        if poison in tree.sequences and isinstance(value, Exception):
            raise value
        logits = forward_batch(loaded, tree)
        return [value if s == poison else x for s, x in zip(tree.sequences, logits, strict=True)]

    monkeypatch.setattr("rm_core.scorer.forward_batch", overflowing)
    for _ in range(3):
        first, second = asyncio.run(engine.run_batch([good, poison])).batch.rewards
        assert isinstance(first, float)
        assert isinstance(second, ScoreError)
        engine.check_health()


@pytest.mark.parametrize(
    ("value", "says"), [(math.nan, "answered nan"), (0.5, "now and was")], ids=["NaN", "another"]
)
def test_corrupted_weights_make_worker_unhealthy(
    value: float,
    says: str,
    copy_of: Callable[..., Path],
    engine_of: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(copy_of()), device="cpu"))
    engine = engine_of(scorer)
    poison = talk(scorer, "5")
    with torch.no_grad():
        scorer.loaded_model.head.add_(value)

    def overflowing(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        logits = forward_batch(loaded, tree)
        return [math.inf if s == poison else x for s, x in zip(tree.sequences, logits, strict=True)]

    monkeypatch.setattr("rm_core.scorer.forward_batch", overflowing)
    with pytest.raises(ReplicaUnhealthyError, match=says):
        asyncio.run(engine.run_batch([talk(scorer, "4"), poison]))
    with pytest.raises(ReplicaUnhealthyError, match=says):
        engine.check_health()
