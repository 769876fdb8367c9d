"""One client among threads, event loops, processes: its connections, and what travels of it."""

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
from serve.client.retries import is_retryable


def test_what_travels_is_where_it_posts(stub: StubService, client_of: Callable[..., Any]) -> None:
    made = client_of([stub.url], "rm", api_key="sk-secret", timeout_s=5, retry_s=7)
    made.score([conversation(1)])
    client = made.client if isinstance(made, Blocking) else made
    assert "sk-secret" not in repr(client)
    again = pickle.loads(pickle.dumps(client))
    assert again.options == client.options
    assert type(again) is type(client)
    if isinstance(again, ScoringClient):
        assert again.score([conversation(2)]) == [2]
        again.close()
    else:
        asyncio.run(scored_and_closed(again))
    assert len(stub.headers) == 2
    assert {h["Authorization"] for h in stub.headers} == {"Bearer sk-secret"}


async def scored_and_closed(client: AsyncScoringClient) -> None:
    async with client:
        assert await client.score([conversation(2)]) == [2]


def test_one_pool_is_shared_by_threads(stub: StubService) -> None:
    found: dict[int, list[float]] = {}
    with ScoringClient(stub.url) as client:

        def use(number: int) -> None:
            found[number] = [client.score([conversation(number)])[0] for _ in range(10)]

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [number] * 10 for number in range(8)}
    assert len(set(stub.peers)) <= 8


def test_one_client_in_one_loop_after_another(stub: StubService) -> None:
    client = AsyncScoringClient(stub.url)

    async def use() -> list[float]:
        async with client:
            return [r for n in range(3) for r in await client.score([conversation(n)])]

    assert [asyncio.run(use()) for _ in range(3)] == [[0, 1, 2]] * 3
    assert len(set(stub.peers)) == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what an ended loop leaves open
def test_connections_of_loops_that_ended_are_let_go(stub: StubService) -> None:
    client = AsyncScoringClient(stub.url)
    for number in range(3):
        assert asyncio.run(client.score([conversation(number)])) == [number]
    assert len(client._pools) == 1
    del client
    gc.collect()


def test_a_cancelled_call_leaves_nothing_behind(stub: StubService) -> None:
    async def use() -> None:
        async with AsyncScoringClient(stub.url, max_items=1) as client:
            stub.num_together = 1_000  # none is answered
            call = asyncio.create_task(client.score([conversation(n) for n in range(20)]))
            await until_async(lambda: stub.num_running)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            stub.num_together = 1
            assert await client.score([conversation(3)]) == [3]
            address = client._sender.endpoints.acquire()
            assert address.num_in_flight == 1

    asyncio.run(use())
    assert len(stub.headers) < 20


def test_bad_options_are_told() -> None:
    with pytest.raises(ServiceError, match="no address was given"):
        ScoringClient([])
    with pytest.raises(ServiceError, match="max_items is 0; give at least 1"):
        ScoringClient("http://127.0.0.1:1", max_items=0)
    for url in ("127.0.0.1:8000", "ftp://h", "http://"):
        with pytest.raises(ServiceError, match="is no address"):
            ScoringClient(url)
    with pytest.raises(TypeError, match="nonsense"):
        ScoringClient("http://127.0.0.1:1", nonsense=1)


def test_a_service_below_a_path(stub: StubService) -> None:
    for url in (f"{stub.url}/rm", f"{stub.url}/rm/"):
        with (
            ScoringClient(url) as client,
            pytest.raises(ServiceError, match="404: no route /rm/v1/score") as caught,
        ):
            client.score([conversation(1)])
        assert caught.value.status == 404


def test_a_forked_process_has_connections_of_its_own(stub: StubService) -> None:
    with ScoringClient(stub.url) as client:
        client.score([conversation(1)])
        here, there = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=score_in, args=(client, there))
        child.start()
        assert here.recv() == [2]
        child.join()
        assert client.score([conversation(3)]) == [3]
    first, second, third = stub.peers
    assert first == third != second


def score_in(client: ScoringClient, there: Connection) -> None:
    there.send(client.score([conversation(2)]))


def test_bodies_are_what_json_makes_of_them(stub: StubService) -> None:
    sent = [{"role": "user", "content": 'a"\n\u2028é'}, conversation(1)[1]]
    with ScoringClient(stub.url) as client:
        client.score([sent, conversation(2)], "left")
    assert stub.bodies == [
        json.loads(json.dumps({"truncation": "left", "conversations": [sent, conversation(2)]}))
    ]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has all of them")
def test_a_machine_that_is_cut_off_would_be_noticed() -> None:
    """The kernel asks whether the other side is there, where a connection leaves the machine."""
    with (
        socket.create_server(("127.0.0.2", 0)) as listening,  # not where a machine calls itself
        ThreadPoolExecutor(1) as pool,
    ):
        listening.settimeout(PATIENCE_S)
        pool.submit(answer_once, listening)
        options = ClientOptions((f"http://127.0.0.2:{listening.getsockname()[1]}",))
        with (
            httpx.Client(
                **options.build_httpx_kwargs(httpx.HTTPTransport, ()), trust_env=False
            ) as http,
            http.stream("GET", options.urls[0]) as answer,
        ):
            connection = answer.extensions["network_stream"].get_extra_info("socket")
            kernel = partial(connection.getsockopt, socket.IPPROTO_TCP)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            after = kernel(socket.TCP_KEEPIDLE)
            after += kernel(socket.TCP_KEEPINTVL) * kernel(socket.TCP_KEEPCNT)
            assert after == 30
            assert kernel(socket.TCP_USER_TIMEOUT) == 30_000


def answer_once(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        received = b""
        while b"\r\n\r\n" not in received:
            received += (part := connection.recv(10_000))
            assert part
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def test_what_the_system_gave_up_may_go_away_and_our_own_timeout_not() -> None:
    """To httpx both are timeouts of reading."""
    for cause, again in (
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), True),
        (TimeoutError("timed out"), False),
    ):
        failure = httpx.ReadTimeout(str(cause))
        failure.__cause__ = RuntimeError()
        failure.__cause__.__cause__ = cause
        assert is_retryable(failure) is again
