"""Answers that clients do not take: sent in parts, and the connection ended where none is taken.

A server that is handed an answer keeps what the client does not read, for ever. `uvicorn` makes the
next part wait while much of the last is left; meanwhile the system tells how much is taken. Ray
Serve takes all parts at once; there HAProxy's own time limit counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_WRITE_BYTES = 256 * 2**10
# Else a client that takes one byte at a time would hold its answer for days.
MIN_PROGRESS_BYTES = 64 * 2**10
"""Fewer than these, taken in the time that a client has, are as good as none."""
_TRANSPORT = "skyreward.transport"


class TransportMiddleware:
    """Outside of everything: notes in the scope what the connection is, where that can be known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        # ASGI has no way to end a connection on which something is left to be sent. uvicorn's
        # `send` is a method of what has the transport.
        scope[_TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        await self._app(scope, receive, send)


def _reset(transport: Any) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # Else the system goes on to offer the client what it has of the answer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class SlowReaderTimer:
    """Resets a connection once its client took fewer than `MIN_PROGRESS_BYTES` in a period.

    Args:
        transport: of the connection, which is given nothing more to send.
        timeout_s: the period.
    """

    def __init__(self, transport: Any, timeout_s: float) -> None:
        self.has_expired = False
        self._transport = transport
        self._timeout_s = timeout_s
        self._begin()

    def cancel(self) -> None:
        """Leave the connection alone."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._num_unacknowledged = _count_unacknowledged_bytes(self._transport)
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._check_progress)

    def _check_progress(self) -> None:
        if (
            self._num_unacknowledged - _count_unacknowledged_bytes(self._transport)
            < MIN_PROGRESS_BYTES
        ):
            self.has_expired = True
            _reset(self._transport)  # and then the server's `send` returns
        else:
            self._begin()


def _count_unacknowledged_bytes(transport: Any) -> int:
    """Bytes that the machine of the client has not acknowledged."""
    held: int = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is None:
        return held
    # The system takes more only once a third of its own megabytes is gone: by itself, `held` stands
    # still for minutes where a client reads slowly.
    with contextlib.suppress(OSError, ValueError):  # it is closed, or the system does not tell
        found = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        held += int.from_bytes(found, sys.byteorder)
    return held


def enforce_send_timeout(scope: Scope, send: Send, timeout_s: float) -> Send:
    """A `send` that gives a client up which takes nothing, or next to nothing, for a while.

    Args:
        scope: of the request, noted by `TransportMiddleware`.
        send: of the server.
        timeout_s: seconds in which `MIN_PROGRESS_BYTES` have to be taken while the server waits for that.
    """
    transport = scope[_TRANSPORT]
    if transport is None:  # whatever this is takes everything at once
        return send
    is_given_up = False

    async def one(message: Message) -> None:
        nonlocal is_given_up
        if is_given_up:
            return
        if not transport.get_write_buffer_size():  # it will not wait
            await send(message)
            return
        patience = SlowReaderTimer(transport, timeout_s)
        try:
            await send(message)
        finally:
            patience.cancel()
            is_given_up = patience.has_expired

    async def deliver(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _MAX_WRITE_BYTES:
            await one(message)
            return
        for start in range(0, len(body), _MAX_WRITE_BYTES):
            part = body[start : start + _MAX_WRITE_BYTES]
            await one({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # to hear whether the connection is still there
        # Waits until nearly all is taken.
        await one({**message, "body": b""})

    return deliver
