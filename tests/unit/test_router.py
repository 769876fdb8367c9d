"""Calls to a replica on a machine that is cut off end once Ray knows that it is dead."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from waiting import until_async

from serve.errors import ReplicaLostError
from serve.worker.backends import RayBackend


@pytest.fixture
def router() -> Any:
    from serve.deployments import router

    return router


class Channel:
    """A gRPC channel that records whether it was closed."""

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
        """Report the actor as alive, then as unknown, then as dead."""
        asked.append((name, namespace))
        assert not channel.closed
        if len(asked) == 2:
            raise ConnectionError("the head does not answer")
        if len(asked) == 3:
            raise ValueError("no such actor")
        return object()

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(router, "_POLL_INTERVAL_S", 0.01)
    asyncio.run(router._close_when_dead(replica_with(channel)))
    assert channel.closed
    assert asked == [("SERVE_REPLICA::skyreward#Scorer-demo#abc", "serve")] * 3


def test_replica_without_calls_has_no_channel(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "is_actor_alive", lambda *_: False)
    asyncio.run(router._close_when_dead(replica_with(None)))


def test_router_closes_channel_of_removed_replica_once(
    router: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only replicas that Serve removes are closed, each once."""
    removed: list[object] = []

    async def close_when_dead(replica: object) -> None:
        removed.append(replica)

    def update(self: Any, replicas: list[str]) -> None:
        self._replicas = {name: name for name in replicas}

    # Ray pickles the class by value; after that its methods have other globals than the module.
    names = router.LeastLoadedRouter.update_replicas.__globals__
    monkeypatch.setitem(names, "_close_when_dead", close_when_dead)
    monkeypatch.setattr(router.RequestRouter, "update_replicas", update)

    async def updates() -> None:
        instance = object.__new__(router.LeastLoadedRouter)
        instance._closing_tasks, instance._replicas = set(), {}
        for running in (["a", "b"], ["b", "c"], ["b", "c"]):
            instance.update_replicas(running)
            await asyncio.sleep(0)
        assert not instance._closing_tasks

    asyncio.run(updates())
    assert removed == ["a"]


class Handle:
    """Handle of a deployment whose calls never end by themselves."""

    app_name, deployment_name = "skyreward", "Scorer-demo"

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Any]] = []
        self.run_batch = SimpleNamespace(remote=self._remote)

    def options(self, **_: object) -> Handle:
        return self

    def _remote(self, *_: object) -> asyncio.Future[Any]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]


@pytest.mark.parametrize("cancelled_by", ["the connection", "the caller"])
def test_closed_connection_is_lost_replica_and_cancellation_is_not(cancelled_by: str) -> None:
    async def outcome() -> BaseException:
        handle = Handle()
        task = asyncio.create_task(RayBackend("demo", handle).run_batch([[1, 2]], 0))
        await until_async(lambda: handle.calls)
        (handle.calls[0] if cancelled_by == "the connection" else task).cancel()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(error, BaseException)
        return error

    expected = ReplicaLostError if cancelled_by == "the connection" else asyncio.CancelledError
    assert isinstance(asyncio.run(outcome()), expected)
