"""A small application behind the guard, and a real server on a port for what needs one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp

from serve.guard import middleware as guard
from serve.guard.admission import Admission
from serve.guard.keys import KeyRing
from serve.settings import Settings

JSON = b"Content-Type: application/json\r\n"
KEY, OTHER_KEY = "correct-horse-battery", "staple-staple-staple"


@dataclass
class Guarded:
    """The application and what was seen of its requests."""

    app: FastAPI
    admission: Admission
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def wait_until_free(self) -> None:
        """Return once nothing is held any more."""
        until(lambda: self.admission.num_running == self.admission.num_bytes == 0)


def guarded(*keys: str, **chosen: Any) -> Guarded:
    """Routes that echo, wait, and answer slowly, behind the guard with these settings."""
    app = FastAPI()
    settings = Settings.of(api_keys=keys, **chosen)
    app.state.settings, app.state.keys = settings, KeyRing.of(settings)
    seen = Guarded(app, guard.install(app, settings))
    router = APIRouter()

    @router.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @router.post("/wait")
    async def wait(request: Request) -> None:
        name = (await request.body()).decode()
        seen.started.append(name)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.cancelled.append(name)
            raise

    @router.post("/slowly")
    async def slowly() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"one ", b"two ", b"three"):
                yield part
                await asyncio.sleep(0.4)

        return StreamingResponse(parts())

    @router.get("/health")
    @router.get("/other")
    async def other() -> str:
        return "fine"

    app.include_router(router)
    return seen


@contextlib.contextmanager
def live(app: ASGIApp) -> Iterator[int]:
    """A real server; gives its port. Whatever it logs as an error fails the test."""
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(self.format(record))

    config = uvicorn.Config(app, port=0, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(collector)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        for logger in loggers:
            logger.removeHandler(collector)
    assert not thread.is_alive()
    assert errors == []


def connect(port: int) -> socket.socket:
    """A connection on which a test writes what it likes."""
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def post(path: str, *headers: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a request."""
    size = b"Content-Length: %d\r\n" % (len(body) if length is None else length)
    start = b"POST %s HTTP/1.1\r\nHost: x\r\n" % path.encode()
    return start + JSON + size + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    found = bytearray()
    while part := connection.recv(65536):
        found += part
    return bytes(found)


def until(condition: Callable[[], bool]) -> None:
    """Return once it holds; a failure if that takes long."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
