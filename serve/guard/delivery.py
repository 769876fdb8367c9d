"""Answers that clients do not take: sent in parts, and the connection ended where none is taken.

A server that is handed an answer keeps what the client does not read, for ever. `uvicorn` makes the
next part wait while much of the last is left, which tells that the client reads. Ray Serve takes
all parts at once; there HAProxy's own time limit counts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PART_BYTES = 256 * 2**10
_TRANSPORT = "skyreward.transport"


class Reachable:
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


def delivering(scope: Scope, send: Send, timeout_s: float) -> Send:
    """A `send` that gives a client up which takes nothing for a while.

    Args:
        scope: of the request, noted by `Reachable`.
        send: of the server.
        timeout_s: most seconds for a part of the answer to be taken.
    """
    transport = scope[_TRANSPORT]
    if transport is None:  # whatever this is takes everything at once
        return send
    is_given_up = False

    def give_up() -> None:
        nonlocal is_given_up
        is_given_up = True
        _reset(transport)  # and then the server's `send` returns

    async def one(message: Message) -> None:
        if is_given_up:
            return
        if not transport.get_write_buffer_size():  # it will not wait
            await send(message)
            return
        timer = asyncio.get_running_loop().call_later(timeout_s, give_up)
        try:
            await send(message)
        finally:
            timer.cancel()

    async def deliver(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _PART_BYTES:
            await one(message)
            return
        for start in range(0, len(body), _PART_BYTES):
            part = body[start : start + _PART_BYTES]
            await one({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # to hear whether the connection is still there
        # Waits until nearly all is taken.
        await one({**message, "body": b""})

    return deliver
