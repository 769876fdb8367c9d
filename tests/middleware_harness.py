"""A small application with the middleware, and a real server on a port for tests that need one."""

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
from serve.api.middleware.access import KeyRing
from serve.api.middleware.connections import BoundedConnection, ConnectionLimits
from serve.api.middleware.request_limits import Admission
from serve.config.settings import Settings
from serve.telemetry.metrics import Metrics

JSON = b"Content-Type: application/json\r\n"
KEY, OTHER_KEY = "correct-horse-battery", "staple-staple-staple"
LARGE = bytes(range(256)) * 2**17
"""Larger than the buffers of two sockets."""
_NEVER_S = 10 * PATIENCE_S


async def _yield_to_loop() -> None:
    await asyncio.sleep(0)


@dataclass
class Harness:
    """The application and a record of its requests.

    Attributes:
        app: application with routes that echo, wait, and respond slowly.
        admission: admission control of the application.
        started: bodies of requests to `/wait` that have started.
        cancelled: bodies of requests to `/wait` that were cancelled.
        on_wait: called by each request to `/wait` after its start.
        between_chunks: awaited after each chunk of a response of `/slowly`.
    """

    app: FastAPI
    admission: Admission
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    on_wait: Callable[[], None] = lambda: None
    between_chunks: Callable[[], Awaitable[None]] = _yield_to_loop

    def wait_until_free(self) -> None:
        """Return once no request uses slots or bytes."""
        until(lambda: self.admission.num_running == self.admission.num_bytes == 0)


def create_harness(*keys: str, **chosen: Any) -> Harness:
    """Create an application with the middleware, under these settings."""
    app = FastAPI()
    settings = Settings.load(api_keys=keys, **chosen)
    app.state.settings, app.state.keys = settings, KeyRing.from_settings(settings)
    app.state.admin_keys = KeyRing.from_settings(settings, admin=True)
    stack.install(app, Metrics())
    harness = Harness(app, app.state.admission)
    router = APIRouter()

    @router.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @router.post("/wait")
    async def wait(request: Request) -> None:
        name = (await request.body()).decode()
        harness.started.append(name)
        harness.on_wait()
        try:
            await asyncio.sleep(_NEVER_S)
        except asyncio.CancelledError:
            harness.cancelled.append(name)
            raise

    @router.post("/slowly")
    async def slowly() -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in (b"one ", b"two ", b"three"):
                yield chunk
                await harness.between_chunks()

        return StreamingResponse(chunks())

    @router.api_route("/large", methods=["GET", "POST"])
    async def large() -> Response:
        return Response(LARGE)

    @router.get("/health")
    @router.get("/other")
    async def other() -> str:
        return "fine"

    app.include_router(router)
    return harness


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: port of 127.0.0.1 on which the server listens.
        loop: event loop of the server, whose clock can be advanced.
        connections: open connections.
    """

    port: int
    loop: MovableLoop
    connections: Collection[Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """Open a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def settle(self) -> None:
        """Return once the loop has checked its clock again."""
        asyncio.run_coroutine_threadsafe(settle(), self.loop).result(PATIENCE_S)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)


@contextlib.contextmanager
def live(app: ASGIApp, limits: ConnectionLimits | None = None, **options: Any) -> Iterator[Server]:
    """Run a real server, with connection limits. A warning in its log fails the test.

    Args:
        app: the application.
        limits: limits of connections; default: those of `skyreward serve --local`.
        options: further options of uvicorn.
    """
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(self.format(record))

    config = uvicorn.Config(
        app, port=0, ws="none", log_config=None, access_log=False, **options,
        http=partial(BoundedConnection, limits=limits or ConnectionLimits()),  # type: ignore[arg-type]
        timeout_graceful_shutdown=10,  # a request that is never cancelled fails only its own test
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
    """Return the bytes of a request with method POST."""
    size = b"Content-Length: %d\r\n" % (len(body) if length is None else length)
    start = b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode()
    return start + JSON + size + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


def read_response(connection: socket.socket) -> tuple[HTTPResponse, bytes]:
    """Read one whole response; return its head and its body."""
    response = HTTPResponse(connection)
    response.begin()
    return response, response.read()


def unread(server: Server, request: bytes) -> socket.socket:
    """Send a request on a connection whose response is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = bytearray()
    while data := connection.recv(65536):
        received += data
    return bytes(received)
