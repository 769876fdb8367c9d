"""One client in threads, event loops and processes: its connections, options and pickling."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import multiprocessing
import pickle
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import httpx
import pytest
from blocking_client import Blocking
from stub_service import StubService, conversation
from waiting import PATIENCE_S, until_async

from serve.client import AsyncScoringClient, ScoringClient, ServiceError
from serve.client.base import ClientOptions
from serve.client.endpoints import is_retryable


def test_pickled_client_keeps_options(stub: StubService, make_client: Callable[..., Any]) -> None:
    made = make_client([stub.url], "rm", api_key="sk-secret", timeout_s=5, retry_timeout_s=7)
    made.score([conversation(1)])
    client = made.client if isinstance(made, Blocking) else made
    assert "sk-secret" not in repr(client)
    unpickled = pickle.loads(pickle.dumps(client))
    assert unpickled.options == client.options
    assert type(unpickled) is type(client)
    if isinstance(unpickled, ScoringClient):
        assert unpickled.score([conversation(2)]) == [2]
        unpickled.close()
    else:
        asyncio.run(score_and_close(unpickled))
    assert len(stub.headers) == 2
    assert {h["Authorization"] for h in stub.headers} == {"Bearer sk-secret"}


async def score_and_close(client: AsyncScoringClient) -> None:
    async with client:
        assert await client.score([conversation(2)]) == [2]


def test_one_pool_is_shared_by_threads(stub: StubService) -> None:
    rewards: dict[int, list[float]] = {}
    with ScoringClient(stub.url) as client:

        def score_often(number: int) -> None:
            rewards[number] = [client.score([conversation(number)])[0] for _ in range(10)]

        threads = [threading.Thread(target=score_often, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rewards == {number: [number] * 10 for number in range(8)}
    assert len(set(stub.peers)) <= 8


def test_async_client_works_in_several_event_loops(stub: StubService) -> None:
    client = AsyncScoringClient(stub.url)

    async def use() -> list[float]:
        async with client:
            return [r for n in range(3) for r in await client.score([conversation(n)])]

    assert [asyncio.run(use()) for _ in range(3)] == [[0, 1, 2]] * 3
    assert len(set(stub.peers)) == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of the closed loops
def test_async_client_drops_connections_of_closed_loops(stub: StubService) -> None:
    client = AsyncScoringClient(stub.url)
    for number in range(3):
        assert asyncio.run(client.score([conversation(number)])) == [number]
    assert len(client._pools) == 1
    del client
    gc.collect()


def test_cancelled_call_releases_endpoints(stub: StubService) -> None:
    async def use() -> None:
        async with AsyncScoringClient(stub.url, max_items=1) as client:
            stub.num_together = 1_000  # no request is answered
            call = asyncio.create_task(client.score([conversation(n) for n in range(20)]))
            await until_async(lambda: stub.num_running)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            stub.num_together = 1
            assert await client.score([conversation(3)]) == [3]
            endpoint = client._sender.endpoints.acquire()
            assert endpoint.num_in_flight == 1

    asyncio.run(use())
    assert len(stub.headers) < 20


def test_bad_options_raise_error() -> None:
    with pytest.raises(ServiceError, match="no address was given"):
        ScoringClient([])
    with pytest.raises(ServiceError, match="max_items is 0; give at least 1"):
        ScoringClient("http://127.0.0.1:1", max_items=0)
    for url in ("127.0.0.1:8000", "ftp://h", "http://"):
        with pytest.raises(ServiceError, match="is not a valid address"):
            ScoringClient(url)
    with pytest.raises(TypeError, match="nonsense"):
        ScoringClient("http://127.0.0.1:1", nonsense=1)


@pytest.mark.parametrize("client_class", [ScoringClient, AsyncScoringClient])
@pytest.mark.parametrize(
    ("old", "new"), [("num_posts", "max_concurrency"), ("retry_s", "retry_timeout_s")]
)
def test_deprecated_option_warns_and_keeps_working(
    client_class: type[ScoringClient] | type[AsyncScoringClient], old: str, new: str
) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated; use {new}") as caught:
        client = client_class("http://127.0.0.1:1", **{old: 7})
    assert caught[0].filename == __file__
    assert getattr(client.options, new) == 7
    with pytest.raises(TypeError, match=f"{old} and {new} are the same option; give only {new}"):
        client_class("http://127.0.0.1:1", **{old: 7, new: 7})


def test_url_path_prefixes_routes(stub: StubService) -> None:
    for url in (f"{stub.url}/rm", f"{stub.url}/rm/"):
        with (
            ScoringClient(url) as client,
            pytest.raises(ServiceError, match="404: no route /rm/v1/score") as caught,
        ):
            client.score([conversation(1)])
        assert caught.value.status == 404


def test_forked_process_opens_new_connections(stub: StubService) -> None:
    with ScoringClient(stub.url) as client:
        client.score([conversation(1)])
        receiver, sender = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=score_and_send, args=(client, sender)
        )
        child.start()
        assert receiver.recv() == [2]
        child.join()
        assert client.score([conversation(3)]) == [3]
    first, second, third = stub.peers
    assert first == third != second


def score_and_send(client: ScoringClient, sender: Connection) -> None:
    sender.send(client.score([conversation(2)]))


def test_request_body_is_plain_json(stub: StubService) -> None:
    sent = [{"role": "user", "content": 'a"\n\u2028é'}, conversation(1)[1]]
    with ScoringClient(stub.url) as client:
        client.score([sent, conversation(2)], "left")
    assert stub.bodies == [
        json.loads(json.dumps({"truncation": "left", "conversations": [sent, conversation(2)]}))
    ]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux's TCP options")
def test_keepalive_detects_unreachable_peer() -> None:
    """The kernel probes the peer of a connection that leaves the machine."""
    with (
        socket.create_server(
            ("127.0.0.2", 0)
        ) as listener,  # not among `hosts`, so not treated as loopback
        ThreadPoolExecutor(1) as pool,
    ):
        listener.settimeout(PATIENCE_S)
        pool.submit(answer_once, listener)
        options = ClientOptions((f"http://127.0.0.2:{listener.getsockname()[1]}",))
        with (
            httpx.Client(
                **options.build_httpx_kwargs(httpx.HTTPTransport, ()), trust_env=False
            ) as http,
            http.stream("GET", options.urls[0]) as response,
        ):
            connection = response.extensions["network_stream"].get_extra_info("socket")
            get_option = partial(connection.getsockopt, socket.IPPROTO_TCP)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            detected_after_s = get_option(socket.TCP_KEEPIDLE)
            detected_after_s += get_option(socket.TCP_KEEPINTVL) * get_option(socket.TCP_KEEPCNT)
            assert detected_after_s == 30
            assert get_option(socket.TCP_USER_TIMEOUT) == 30_000


def answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        received = b""
        while b"\r\n\r\n" not in received:
            received += (data := connection.recv(10_000))
            assert data
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def test_os_timeout_is_retryable_and_own_timeout_is_not() -> None:
    """httpx reports both as read timeouts."""
    for cause, expected in (
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), True),
        (TimeoutError("timed out"), False),
    ):
        failure = httpx.ReadTimeout(str(cause))
        failure.__cause__ = RuntimeError()
        failure.__cause__.__cause__ = cause
        assert is_retryable(failure) is expected
