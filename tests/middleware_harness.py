"""A small application behind the guard, and a real server on a port for what needs one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPResponse
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp
from waiting import PATIENCE_S, MovableLoop, settle, until

from serve.api.middleware import stack
from serve.api.middleware.admission import Admission
from serve.api.middleware.api_keys import KeyRing
from serve.api.middleware.connections import BoundedConnection, ConnectionLimits
from serve.config.settings import Settings

JSON = b"Content-Type: application/json\r\n"
KEY, OTHER_KEY = "correct-horse-battery", "staple-staple-staple"
LARGE = bytes(range(256)) * 2**17
"""More than the buffers of two sockets take."""
_NEVER_S = 10 * PATIENCE_S


async def _pass_a_turn() -> None:
    await asyncio.sleep(0)


@dataclass
class Guarded:
    """The application and what was seen of its requests.

    Attributes:
        app: routes that echo, wait, and answer slowly.
        admission: what its requests hold.
        started: bodies of the requests to `/wait` that have begun.
        cancelled: bodies of those that were cancelled.
        on_wait: called by each request to `/wait` once it has begun.
        between_parts: awaited after each part of an answer of `/slowly`.
    """

    app: FastAPI
    admission: Admission
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    on_wait: Callable[[], None] = lambda: None
    between_parts: Callable[[], Awaitable[None]] = _pass_a_turn

    def wait_until_free(self) -> None:
        """Return once nothing is held any more."""
        until(lambda: self.admission.num_running == self.admission.num_bytes == 0)


def guarded(*keys: str, **chosen: Any) -> Guarded:
    """Routes that echo, wait, and answer slowly, behind the guard with these settings."""
    app = FastAPI()
    settings = Settings.load(api_keys=keys, **chosen)
    app.state.settings, app.state.keys = settings, KeyRing.from_settings(settings)
    seen = Guarded(app, stack.install(app, settings))
    router = APIRouter()

    @router.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @router.post("/wait")
    async def wait(request: Request) -> None:
        name = (await request.body()).decode()
        seen.started.append(name)
        seen.on_wait()
        try:
            await asyncio.sleep(_NEVER_S)
        except asyncio.CancelledError:
            seen.cancelled.append(name)
            raise

    @router.post("/slowly")
    async def slowly() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"one ", b"two ", b"three"):
                yield part
                await seen.between_parts()

        return StreamingResponse(parts())

    @router.api_route("/large", methods=["GET", "POST"])
    async def large() -> Response:
        return Response(LARGE)

    @router.get("/health")
    @router.get("/other")
    async def other() -> str:
        return "fine"

    app.include_router(router)
    return seen


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: of 127.0.0.1, where it listens.
        loop: that it runs on; its clock can be set forward.
        connections: that are open.
    """

    port: int
    loop: MovableLoop
    connections: Collection[Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """Open a connection on which a test writes what it likes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def settle(self) -> None:
        """Return once the loop has looked at its clock again."""
        asyncio.run_coroutine_threadsafe(settle(), self.loop).result(PATIENCE_S)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)


@contextlib.contextmanager
def live(app: ASGIApp, limits: ConnectionLimits | None = None, **options: Any) -> Iterator[Server]:
    """A real server on a port, with our limits on connections. A warning in its log fails the test.

    Args:
        app: what answers.
        limits: by default those of `skyreward serve --local`.
        options: more of uvicorn's.
    """
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(self.format(record))

    config = uvicorn.Config(
        app, port=0, ws="none", log_config=None, access_log=False, **options,
        http=partial(BoundedConnection, limits=limits or ConnectionLimits()),  # type: ignore[arg-type]
        timeout_graceful_shutdown=10,  # a request that is never cancelled fails its test, no more
    )  # fmt: skip
    server = uvicorn.Server(config)
    loop = MovableLoop()
    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(collector)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Server(port, loop, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        for logger in loggers:
            logger.removeHandler(collector)
    assert not thread.is_alive()
    assert errors == []


def post(path: str, *headers: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a request."""
    size = b"Content-Length: %d\r\n" % (len(body) if length is None else length)
    start = b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode()
    return start + JSON + size + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


def read_response(connection: socket.socket) -> tuple[HTTPResponse, bytes]:
    """One response of a connection, all of it: its head, and its body."""
    response = HTTPResponse(connection)
    response.begin()
    return response, response.read()


def unread(server: Server, request: bytes) -> socket.socket:
    """A connection whose answer is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    found = bytearray()
    while part := connection.recv(65536):
        found += part
    return bytes(found)
