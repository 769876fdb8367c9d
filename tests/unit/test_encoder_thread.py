"""The encoder's thread: order of requests, cancellation, errors and stuck tasks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import pytest
from conftest import ROOT
from fakes import FakeBackend, conversation
from waiting import PATIENCE_S, MovableLoop, advance, until_async

from rm_core import NotReadyError, Reward
from serve.api.app import create_app
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.scoring.served_model import ServedModel
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import (
    STUCK_AFTER_S,
    AbandonedError,
    EncoderTask,
    EncoderThread,
    RequestOptions,
)

Scenario = Callable[[], Coroutine[Any, Any, None]]


def run_scenario(scenario: Scenario) -> None:
    with asyncio.Runner(loop_factory=MovableLoop) as runner:
        runner.run(scenario())


async def run_work(
    thread: EncoderThread, client: str, size: int, work: Any, priority: int = 0
) -> Any:
    with thread.open_flow(client, priority) as flow:
        return await thread.run(flow, size, work)


def test_slices_take_turns_by_client_and_request() -> None:
    async def scenario() -> None:
        thread, go, order = EncoderThread("rm"), threading.Event(), []

        async def slice_by_slice(name: str, client: str, number: int, size: int) -> None:
            with thread.open_flow(client) as flow:
                for _ in range(number):
                    await thread.run(flow, size, lambda _: order.append(name))

        first = asyncio.ensure_future(run_work(thread, "a", 1, lambda _: go.wait(PATIENCE_S)))
        await asyncio.sleep(0)
        requests = [slice_by_slice(f"a{i}", "a", 3, 1_000) for i in range(5)]
        requests.append(slice_by_slice("small", "a", 1, 10))
        requests.append(slice_by_slice("b", "b", 3, 1_000))
        waiting = [asyncio.ensure_future(request) for request in requests]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, *waiting)
        assert order[0] == "small"
        # The other client has half of the turns, however many requests the first client has.
        assert [index for index, name in enumerate(order) if name == "b"][-1] <= 7

    run_scenario(scenario)


def test_each_turn_checks_each_waiting_request_about_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_checks, is_pending = count(), EncoderTask.is_pending.fget  # type: ignore[attr-defined]

    def counting_is_pending(task: EncoderTask) -> bool:
        next(num_checks)
        return bool(is_pending(task))

    monkeypatch.setattr(EncoderTask, "is_pending", property(counting_is_pending))

    async def scenario() -> None:
        thread, number = EncoderThread("rm"), 100
        await asyncio.gather(*(run_work(thread, f"c{i}", 1, lambda _: None) for i in range(number)))
        assert next(num_checks) < 1.2 * number * number / 2

    run_scenario(scenario)


def test_priority_applies_only_within_client() -> None:
    async def scenario() -> None:
        thread, go, order = EncoderThread("rm"), threading.Event(), []
        tasks = [run_work(thread, "a", 1, lambda _: go.wait(PATIENCE_S))]
        tasks += [
            run_work(thread, client, size, lambda _, name=name: order.append(name), priority)
            for name, client, size, priority in (
                ("normal", "a", 100, 0),
                ("urgent", "a", 10_000, -1_000),
                ("other", "b", 200, 0),
            )
        ]
        waiting = [asyncio.ensure_future(task) for task in tasks]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*waiting)
        assert order == ["other", "urgent", "normal"]

    run_scenario(scenario)


def test_cancelled_task_ends_and_next_one_starts() -> None:
    async def scenario() -> None:
        thread, began, ended = EncoderThread("rm"), threading.Event(), threading.Event()

        def work(check_cancelled: Callable[[], None]) -> None:
            began.set()
            try:
                while True:
                    check_cancelled()
            except AbandonedError:
                ended.set()
                raise

        endless = asyncio.ensure_future(run_work(thread, "a", 1, work))
        never = asyncio.ensure_future(run_work(thread, "a", 1, work))
        await until_async(began.is_set)
        never.cancel()
        endless.cancel()
        assert await run_work(thread, "a", 1, lambda _: 7) == 7
        assert ended.is_set()

    run_scenario(scenario)


def test_thread_survives_base_exception_of_task() -> None:
    class PanicException(BaseException):
        pass

    async def scenario() -> None:
        thread = EncoderThread("rm")

        def fail(_: object) -> None:
            raise PanicException("gave up")

        with pytest.raises(PanicException):
            await run_work(thread, "a", 1, fail)
        assert await run_work(thread, "a", 1, lambda _: 7) == 7

    run_scenario(scenario)


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(1), KeyboardInterrupt()])
def test_exception_that_future_refuses_becomes_runtime_error(raised: BaseException) -> None:
    async def scenario() -> None:
        thread = EncoderThread("rm")

        def fail(_: object) -> None:
            raise raised

        with pytest.raises(RuntimeError, match=type(raised).__name__):
            await asyncio.wait_for(run_work(thread, "a", 1, fail), PATIENCE_S)
        assert await run_work(thread, "a", 1, lambda _: 7) == 7

    run_scenario(scenario)


def test_new_event_loop_does_not_wait_for_task_of_closed_one() -> None:
    thread, began, go = EncoderThread("rm"), threading.Event(), threading.Event()

    async def leave() -> None:
        def work(_: object) -> None:
            began.set()
            go.wait(PATIENCE_S)

        left = asyncio.ensure_future(run_work(thread, "a", 1, work))
        await until_async(began.is_set)
        left.cancel()

    async def scenario() -> None:
        go.set()
        assert await asyncio.wait_for(run_work(thread, "a", 1, lambda _: 7), PATIENCE_S) == 7

    run_scenario(leave)
    run_scenario(scenario)


def test_stuck_thread_fails_waiting_and_new_tasks() -> None:
    async def scenario() -> None:
        thread, go = EncoderThread("rm"), threading.Event()
        running = asyncio.ensure_future(run_work(thread, "a", 1, lambda _: go.wait(PATIENCE_S)))
        behind = asyncio.ensure_future(run_work(thread, "b", 1, lambda _: 7))
        await asyncio.sleep(0)
        advance(STUCK_AFTER_S - 60)
        await asyncio.sleep(0.01)
        assert thread.stall_reason() is None
        advance(61)
        for waiting in (running, behind):
            with pytest.raises(NotReadyError, match="'rm' is stuck at rendering or tokenizing"):
                await waiting
        with pytest.raises(NotReadyError, match="has to be restarted"):
            await run_work(thread, "a", 1, lambda _: 7)
        go.set()
        await until_async(lambda: thread.stall_reason() is None)
        assert await run_work(thread, "a", 1, lambda _: 7) == 7

    run_scenario(scenario)


def test_stuck_encoder_makes_only_its_model_fail() -> None:
    async def scenario() -> None:
        backend, go = FakeBackend(), threading.Event()
        settings = Settings.load(models=["one=demo", "two=demo"])
        service = ScoringService([(model, backend) for model in settings.models], settings)
        create_app(service, settings)
        one, two = service.models.values()
        one.update_info(backend.info)
        two.update_info(backend.info)
        assert service.is_ready
        service.check_health()
        encode = one.encoder.encode_all
        one.encoder.encode_all = (  # type: ignore[method-assign]
            lambda *args, **options: go.wait(PATIENCE_S) and encode(*args, **options)
        )
        waiting = asyncio.ensure_future(service.score("one", [conversation("4")], "error"))
        await until_async(lambda: one.encoder_thread.is_busy)
        advance(STUCK_AFTER_S + 1)
        with pytest.raises(NotReadyError):
            await waiting
        assert (service.is_ready, one.state, two.state) == (False, "failed", "ready")
        assert "the gateway is stuck" in (one.failure or "")
        with pytest.raises(NotReadyError):  # Serve then replaces the gateway
            service.check_health()
        with pytest.raises(NotReadyError):
            await service.score("one", [conversation("4")], "error")
        scores = await service.score("two", [conversation("4")], "error")
        assert isinstance(scores.results[0], Reward)
        go.set()

    run_scenario(scenario)


def test_process_exits_with_stuck_encoder() -> None:
    code = """
import asyncio, threading
from serve.scoring.tokenization import EncoderThread

async def main():
    thread, began = EncoderThread("rm"), threading.Event()
    def work(_):
        began.set()
        threading.Event().wait()
    with thread.open_flow("a") as flow:
        waiting = asyncio.ensure_future(thread.run(flow, 1, work))
        while not began.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0


def test_large_request_is_tokenized_on_demand() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        backend.gate = asyncio.Event()
        model = ServedModel(ModelSettings(name="demo", alias="demo", cache_bytes=0), backend)
        model.update_info(backend.info)  # batches of 200 tokens
        conversations = [conversation(f"{i} " * 100) for i in range(2_000)]
        waiting = asyncio.ensure_future(model.score(conversations, RequestOptions()))
        await until_async(lambda: bool(backend.batches) and not model.encoder_thread.is_busy)
        queued_tokens = model.dispatcher.queued_tokens
        assert queued_tokens < 64 * 400 + 16 * 200
        backend.gate.set()
        scores = await waiting
        assert len(scores.results) == 2_000
        assert all(isinstance(result, Reward) for result in scores.results)

    asyncio.run(scenario())
