"""Limits on HTTP connections in uvicorn: size and time of a request's head, number, slow readers.

A head is a request line with its headers. uvicorn has none of these limits. Its parser httptools
collects an unfinished header by appending, at quadratic cost, and uvicorn waits for an unfinished
head until the client disconnects. uvicorn's h11 parser would limit only the size, and costs more
CPU per request.

`BoundedConnection` extends the class that uvicorn chooses by default and is passed in uvicorn's
option `http`. It relies on methods of that class and on its attributes `cycle`, `parser`,
`pipeline`, `scope` and `connections`. uvicorn documents none of them: the tests of these limits
have to pass before another version of uvicorn is pinned.

A server that is given a response buffers the unread rest without limit of time. uvicorn delays the
next chunk while much of the last one is unread; meanwhile the operating system reports how many
bytes the client has acknowledged. Ray Serve accepts all chunks at once; there, HAProxy's timeout
applies.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import resource
import socket
import struct
import sys
import termios
from typing import Any, NamedTuple

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 2**10
# Seconds until a request's head has to be complete; the gateway limits the time of the body.
HEAD_TIMEOUT_S = 30
# A rejected client may keep sending for this time, so that it receives the response.
_LINGER_S = 2.0
# Share of the process's file descriptors for connections; models, Ray and logs need the others.
_SHARE_OF_FILES = 0.75
_MOST_CONNECTIONS = 16_384
_RETRY_AFTER_S = 5
_MAX_WRITE_BYTES = 256 * 2**10
# Otherwise a client that reads one byte at a time would keep its response in memory for days.
MIN_PROGRESS_BYTES = 64 * 2**10
"""A client that reads fewer bytes than this within the timeout counts as stalled."""
TRANSPORT_KEY = "skyreward.transport"
"""Key in a request's scope: the transport of its connection, in a server of `BoundedConnection`.

ASGI has no way to close a connection with unsent data. Other servers, such as Ray Serve, do not
give access to the transport and accept a whole response at once.
"""


class RawErrorResponse(NamedTuple):
    """An error response that is sent before, or instead of, the application's response."""

    status: int
    reason: str
    type: str
    code: str
    message: str

    def to_bytes(self) -> bytes:
        """Return the whole HTTP response, in the native error format, with `Connection: close`."""
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        body = json.dumps({"error": error})
        head = [
            f"HTTP/1.1 {self.status} {self.reason}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Retry-After: {_RETRY_AFTER_S}"] if self.status == 503 else []),
            "Connection: close",
        ]
        return "\r\n".join([*head, "", body]).encode()


BAD_REQUEST = RawErrorResponse(
    400, "Bad Request", "invalid_request_error", "bad_request", "the request is not valid HTTP"
)
HEAD_TIMEOUT = RawErrorResponse(
    408,
    "Request Timeout",
    "invalid_request_error",
    "request_timeout",
    f"the request's head did not arrive within {HEAD_TIMEOUT_S} s",
)
_HEAD_TOO_LARGE = RawErrorResponse(
    431,
    "Request Header Fields Too Large",
    "invalid_request_error",
    "head_too_large",
    f"the request line and the headers have more than {MAX_HEAD_BYTES:,} bytes; send fewer or "
    "shorter headers",
)
_TOO_MANY = RawErrorResponse(
    503,
    "Service Unavailable",
    "overloaded_error",
    "too_many_connections",
    "all connections that this process may hold are busy; try again later",
)


def _get_default_max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(1, min(_MOST_CONNECTIONS, int(files * _SHARE_OF_FILES)))


class ConnectionLimits:
    """Limits of the connections of one server, and its idle connections.

    Args:
        max_head_bytes: maximum size of a request line with its headers, in bytes.
        head_timeout_s: seconds from the opening of a connection, or from the first byte of a later
            request, until the head is complete.
        max_connections: maximum number of open connections; None for three quarters of the files
            that this process may open, at most 16,384.

    Attributes:
        idle_connections: connections that wait for a request, the longest idle first.
    """

    def __init__(
        self,
        max_head_bytes: int = MAX_HEAD_BYTES,
        head_timeout_s: float = HEAD_TIMEOUT_S,
        max_connections: int | None = None,
    ) -> None:
        self.max_head_bytes = max_head_bytes
        self.head_timeout_s = head_timeout_s
        self.max_connections = max_connections or _get_default_max_connections()
        # A dict keeps the order of insertion.
        self.idle_connections: dict[BoundedConnection, None] = {}


_PROCESS_LIMITS = ConnectionLimits()


class BoundedConnection(HttpToolsProtocol):
    """An HTTP connection that sends an error response and closes when it exceeds a limit."""

    def __init__(
        self, *, limits: ConnectionLimits = _PROCESS_LIMITS, **protocol_options: Any
    ) -> None:
        super().__init__(**protocol_options)
        self._limits = limits
        # Bytes since the last complete head or the last chunk of a body. The count also covers
        # endless chunk extensions and trailers, which httptools parses as headers.
        self._unread_bytes = 0
        self._head_is_too_large = False
        self._is_rejected = False
        self._timer: asyncio.TimerHandle | None = None
        self._slow_reader_timer: SlowReaderTimer | None = None
        # Head of a request to upgrade to another protocol, such as HTTP/2, without the upgrade
        # header: the request is parsed again with this head.
        self._plain_head: bytes | None = None
        self._head_ends_at = 0
        self._active_cycle: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection; at the limit, close the longest idle connection."""
        super().connection_made(transport)
        idle = self._limits.idle_connections
        idle[self] = None
        self._start_timer()
        if len(self.connections) > self._limits.max_connections:
            oldest = next(iter(idle))
            del idle[oldest]
            if oldest is self:  # all other connections are busy
                self.transport.write(_TOO_MANY.to_bytes())
            oldest._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection, and notify the active request."""
        super().connection_lost(exc)
        # uvicorn notifies only the last request received, which may still be queued.
        if self._active_cycle is not None and not self._active_cycle.response_complete:
            self._active_cycle.disconnected = True
            self._active_cycle.message_event.set()
        self.pipeline.clear()
        self._mark_busy()
        if self._slow_reader_timer is not None:
            self._slow_reader_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse the data; reject a head that exceeds the limit."""
        if self._is_rejected:
            return
        self._unread_bytes += len(data)
        super().data_received(data)
        while self._plain_head is not None:
            head, self._plain_head = self._plain_head, None
            data = memoryview(data)[self._head_ends_at :]  # type: ignore[assignment]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            super().data_received(head)
            super().data_received(data)
        if self._unread_bytes > self._limits.max_head_bytes:
            self._reject(_HEAD_TOO_LARGE)
        elif self._timer is None and not self._is_answering():
            self._start_timer()

    def on_headers_complete(self) -> None:
        """Start a request, unless its head is too large."""
        limit = self._limits.max_head_bytes
        # `_unread_bytes` may include part of the body: only above the limit is an exact sum needed.
        if self._unread_bytes > limit and self._head_bytes() > limit:
            self._head_is_too_large = True
            raise ValueError("stops the parser; see send_400_response")
        self._unread_bytes = 0
        if self.parser.should_upgrade() and self._get_upgrade() and not self._should_upgrade():
            self._plain_head = self._build_head_without_upgrade()
            return
        super().on_headers_complete()
        self._mark_busy()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active_cycle = cycle
        cycle.scope[TRANSPORT_KEY] = self.transport  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Pass a chunk of a body on."""
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless it is parsed again."""
        if self._plain_head is None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.transport.is_closing():  # as the client asked
            self._close()
        if not self._is_answering():
            self._limits.idle_connections[self] = None
            if self.is_in_head():  # of the next request
                self._start_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection: no further request arrived."""
        self._close()

    def shutdown(self) -> None:
        """Close the connection, after the active request is answered."""
        if self._is_answering():
            super().shutdown()
        else:
            self._end()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser stops, after a head with an upgrade header."""
        # The parser treats the body as data of the other protocol. A server may ignore the upgrade
        # (RFC 9110, 7.8), and clients that offer HTTP/2 in their first request expect this: Java's
        # client, curl --http2.
        error = sys.exception()
        if self._plain_head is not None and error is not None:
            self._head_ends_at = error.args[0]
        else:
            super()._unsupported_upgrade_warning()

    def _build_head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Called for requests that the parser rejects; uvicorn's own response is plain text."""
        self._unread_bytes = 0
        self._reject(_HEAD_TOO_LARGE if self._head_is_too_large else BAD_REQUEST)

    def is_in_head(self) -> bool:
        """Return whether a head has begun and is not complete."""
        # uvicorn creates a scope for each head, and passes it to a cycle when the head is complete.
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._limits.head_timeout_s, self._on_late_head)

    def _on_late_head(self) -> None:
        self._timer = None
        if self.is_in_head():
            self._reject(HEAD_TIMEOUT)
        else:  # a client that has sent nothing would read an error as the response to its request
            self._end()

    def _end(self) -> None:
        if self.transport.get_write_buffer_size():
            self._close()
        else:  # a clean TLS shutdown would wait for the client
            self.transport.abort()

    def _close(self) -> None:
        """Close the connection when the client has read all data, or reads too slowly."""
        self.transport.close()
        if self._slow_reader_timer is None and self.transport.get_write_buffer_size():
            self._slow_reader_timer = SlowReaderTimer(self.transport, self._limits.head_timeout_s)

    def _mark_busy(self) -> None:
        self._limits.idle_connections.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reject(self, response: RawErrorResponse) -> None:
        if self._is_rejected or self.transport.is_closing():
            return
        self._is_rejected = True
        if self._is_answering():
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                # The rejected data came after a request that is being answered.
                self.cycle.keep_alive = False
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._unset_keepalive_if_required()
        self._mark_busy()
        self._limits.idle_connections[self] = None
        self.transport.write(response.to_bytes())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closing while the client is still sending would reset the connection: the client would
        # lose the response.
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)


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

    No more data may be written to the transport meanwhile.
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
