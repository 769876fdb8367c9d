"""A replica whose machine was cut off: calls to it end once Ray knows, and no sooner."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from waiting import until_async

from serve.errors import ReplicaLostError
from serve.worker.backends import RayBackend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's import


@pytest.fixture
def router() -> Any:
    from serve.deployments import router

    return router


class Channel:
    """As far as it matters: closed or not."""

    closed = False

    async def close(self) -> None:
        self.closed = True


def replica_with(channel: Channel | None) -> Any:
    name = SimpleNamespace(to_full_id_str=lambda: "SERVE_REPLICA::skyreward#Scorer-demo#abc")
    return SimpleNamespace(replica_id=name, _channel=channel)


def test_router_closes_channel_of_dead_replica(
    router: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, asked = Channel(), []

    def get_actor(name: str, namespace: str) -> object:
        """Alive, not known, and dead."""
        asked.append((name, namespace))
        assert not channel.closed
        if len(asked) == 2:
            raise ConnectionError("the head does not answer")
        if len(asked) == 3:
            raise ValueError("no such actor")
        return object()

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(router, "_POLL_INTERVAL_S", 0.01)
    asyncio.run(router._close_when_dead(replica_with(channel)))
    assert channel.closed
    assert asked == [("SERVE_REPLICA::skyreward#Scorer-demo#abc", "serve")] * 3


def test_replica_without_calls_has_no_channel(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_is_alive", lambda _name: False)
    asyncio.run(router._close_when_dead(replica_with(None)))


def test_router_closes_channel_of_removed_replica_once(
    router: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that Serve takes off the list, once each; nobody else."""
    left: list[object] = []

    async def close_when_dead(replica: object) -> None:
        left.append(replica)

    def update(self: Any, replicas: list[str]) -> None:
        self._replicas = {name: name for name in replicas}

    monkeypatch.setattr(router, "_close_when_dead", close_when_dead)
    monkeypatch.setattr(router.RequestRouter, "update_replicas", update)

    async def updates() -> None:
        made = object.__new__(router.LeastLoadedRouter)
        made._closing_tasks, made._replicas = set(), {}
        for running in (["a", "b"], ["b", "c"], ["b", "c"]):
            made.update_replicas(running)
            await asyncio.sleep(0)
        assert not made._closing_tasks

    asyncio.run(updates())
    assert left == ["a"]


class Handle:
    """Of a deployment whose calls never end by themselves."""

    deployment_name = "Scorer-demo"

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Any]] = []
        self.run_batch = SimpleNamespace(remote=self._remote)

    def options(self, **_: object) -> Handle:
        return self

    def _remote(self, *_: object) -> asyncio.Future[Any]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]


@pytest.mark.parametrize("who", ["the connection", "the caller"])
def test_closed_connection_is_lost_replica_and_cancellation_is_not(who: str) -> None:
    async def outcome() -> BaseException:
        handle = Handle()
        task = asyncio.create_task(RayBackend("demo", handle).run_batch([[1, 2]], 0))
        await until_async(lambda: handle.calls)
        (handle.calls[0] if who == "the connection" else task).cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, BaseException)
        return ended

    expected = ReplicaLostError if who == "the connection" else asyncio.CancelledError
    assert isinstance(asyncio.run(outcome()), expected)
