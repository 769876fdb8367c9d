"""Send responses in chunks, and reset the connection of a client that does not read them.

A server that is given a response buffers the unread rest without limit of time. uvicorn delays the
next chunk while much of the last one is unread; meanwhile the operating system reports how many
bytes the client has acknowledged. Ray Serve accepts all chunks at once; there, HAProxy's timeout
applies.
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
# Otherwise a client that reads one byte at a time would keep its response in memory for days.
MIN_PROGRESS_BYTES = 64 * 2**10
"""A client that reads fewer bytes than this within the timeout counts as stalled."""
TRANSPORT_KEY = "skyreward.transport"
"""Key in a request's scope: the transport of its connection, in a server of `BoundedConnection`.

ASGI has no way to close a connection with unsent data. Other servers, such as Ray Serve, do not
give access to the transport and accept a whole response at once.
"""


class ResponseTimeoutMiddleware:
    """Resets the connection of a client that reads too little of its response.

    The limit is `MIN_PROGRESS_BYTES` in the seconds of the setting `answer_timeout_s`, while the
    server waits for the client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        transport = scope.get(TRANSPORT_KEY)
        if transport is not None:
            send = _limit_waiting(send, transport, scope["app"].state.settings.answer_timeout_s)
        await self._app(scope, receive, send)


def _reset(transport: Any) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # Otherwise the operating system keeps sending the buffered rest of the response.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class SlowReaderTimer:
    """Resets a connection whose client reads fewer than `MIN_PROGRESS_BYTES` in a period.

    Args:
        transport: transport of the connection; no more data may be written to it meanwhile.
        timeout_s: the period, in seconds.

    Attributes:
        has_expired: whether the connection was reset.
    """

    def __init__(self, transport: Any, timeout_s: float) -> None:
        self.has_expired = False
        self._transport = transport
        self._timeout_s = timeout_s
        self._begin()

    def cancel(self) -> None:
        """Stop the timer; the connection stays open."""
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
            _reset(self._transport)  # the server's `send` returns then
        else:
            self._begin()


def _count_unacknowledged_bytes(transport: Any) -> int:
    """Return the number of bytes that the client's machine has not acknowledged."""
    num_bytes: int = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is None:
        return num_bytes
    # The operating system accepts more data only once a third of its buffer of megabytes is free:
    # the write buffer alone does not change for minutes while a client reads slowly.
    with contextlib.suppress(OSError, ValueError):  # the socket is closed, or TIOCOUTQ unsupported
        output_queue = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        num_bytes += int.from_bytes(output_queue, sys.byteorder)
    return num_bytes


def _limit_waiting(send: Send, transport: Any, timeout_s: float) -> Send:
    """Return a `send` for a transport that resets the connection of a stalled client."""
    is_given_up = False

    async def send_message(message: Message) -> None:
        nonlocal is_given_up
        if is_given_up:
            return
        if not transport.get_write_buffer_size():  # `send` will not wait
            await send(message)
            return
        timer = SlowReaderTimer(transport, timeout_s)
        try:
            await send(message)
        finally:
            timer.cancel()
            is_given_up = timer.has_expired

    async def send_in_chunks(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _MAX_WRITE_BYTES:
            await send_message(message)
            return
        for start in range(0, len(body), _MAX_WRITE_BYTES):
            chunk = body[start : start + _MAX_WRITE_BYTES]
            await send_message({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)  # lets the event loop notice a closed connection
        # Waits until the client has read nearly all of the response.
        await send_message({**message, "body": b""})

    return send_in_chunks
