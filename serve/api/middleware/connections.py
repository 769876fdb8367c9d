"""Limits on HTTP connections where uvicorn listens: size and time of a head, and their number.

uvicorn has none of the three. Its parser httptools collects an unfinished header by appending, at
quadratic cost, and a head that is never finished is waited for until the client leaves. uvicorn's
h11 parser would limit the size alone, and costs more CPU for each request.

`BoundedConnection` extends the class that uvicorn itself would choose and goes in through uvicorn's
option `http`. It relies on methods of that class and on its attributes `cycle`, `parser`,
`pipeline`, `scope` and `connections`. uvicorn documents none of them: the tests of these limits
have to pass before another uvicorn is pinned.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serve.api.middleware.response_timeout import SlowReaderTimer
from serve.api.raw_responses import BAD_REQUEST, HEAD_TIMEOUT, HEAD_TIMEOUT_S, RawErrorResponse

MAX_HEAD_BYTES = 64 * 2**10
# How long a client that was refused may go on sending, so that it gets to see the answer.
_LINGER_S = 2.0
# Of the files that a process may open, for connections; models, Ray and logs need the others.
_SHARE_OF_FILES = 0.75
_MOST_CONNECTIONS = 16_384

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
    "every connection that this process may hold is being answered; try again later",
)


def _get_default_max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(1, min(_MOST_CONNECTIONS, int(files * _SHARE_OF_FILES)))


class ConnectionLimits:
    """Limits of the connections of one server, and those connections that wait for a request.

    Args:
        max_head_bytes: of a request line with its headers.
        head_timeout_s: from the opening of a connection, or from the first byte of a later request,
            until a head is whole.
        max_open: connections at the same time; None for three quarters of the files that this
            process may open.
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
        # A dict for its order: the connection that has waited longest comes first.
        self.idle_connections: dict[BoundedConnection, None] = {}


_PROCESS_LIMITS = ConnectionLimits()


class BoundedConnection(HttpToolsProtocol):
    """One HTTP connection. Where a limit is exceeded it is answered, then closed.

    Args:
        limits: shared by all connections of the server.
        uvicorn: what uvicorn gives every connection.
    """

    def __init__(
        self, *, limits: ConnectionLimits = _PROCESS_LIMITS, **protocol_options: Any
    ) -> None:
        super().__init__(**protocol_options)
        self._limits = limits
        # Since the last head, or piece of a body, that was whole. That also covers endless chunk
        # extensions and trailers, of which httptools makes headers.
        self._unread_bytes = 0
        self._head_is_too_large = False
        self._is_rejected = False
        self._timer: asyncio.TimerHandle | None = None
        self._slow_reader_timer: SlowReaderTimer | None = None
        # The head of a request that asks for another protocol, such as HTTP/2: it is begun again.
        self._plain_head: bytes | None = None
        self._head_ends_at = 0
        self._active_cycle: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it; if there are too many, end the one that has been idle longest."""
        super().connection_made(transport)
        waiting = self._limits.idle_connections
        waiting[self] = None
        self._start_timer()
        if len(self.connections) > self._limits.max_connections:
            oldest = next(iter(waiting))
            del waiting[oldest]
            if oldest is self:  # all others are being answered
                self.transport.write(_TOO_MANY.to_bytes())
            oldest._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        # uvicorn tells the last request that came, which may be one that waits for its turn.
        if self._active_cycle is not None and not self._active_cycle.response_complete:
            self._active_cycle.disconnected = True
            self._active_cycle.message_event.set()
        self.pipeline.clear()
        self._mark_busy()
        if self._slow_reader_timer is not None:
            self._slow_reader_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse what grows without becoming a request or a piece of a body."""
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
        """Begin a request, unless its head is too large."""
        limit = self._limits.max_head_bytes
        # The bytes of this reading may be a body for the larger part: only then it is worth a sum.
        if self._unread_bytes > limit and self._head_bytes() > limit:
            self._head_is_too_large = True
            raise ValueError("ends the parsing; see send_400_response")
        self._unread_bytes = 0
        if self.parser.should_upgrade() and self._get_upgrade() and not self._should_upgrade():
            self._plain_head = self._build_head_without_upgrade()
            return
        super().on_headers_complete()
        self._mark_busy()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of a body."""
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless it is begun again."""
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
        """End it: no further request came."""
        self._close()

    def shutdown(self) -> None:
        """End it, once what is being answered is answered."""
        if self._is_answering():
            super().shutdown()
        else:
            self._end()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser stops, behind a head that asks for another protocol."""
        # It takes the body for that protocol's. A server may go on in its own (RFC 9110, 7.8), as
        # clients of HTTP/2 expect that ask for it in their first request: Java's, curl --http2.
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
        """Called for what the parser refuses; uvicorn's own answer would be plain text."""
        self._unread_bytes = 0
        self._reject(_HEAD_TOO_LARGE if self._head_is_too_large else BAD_REQUEST)

    def is_in_head(self) -> bool:
        """Whether a head has begun and is not whole."""
        # uvicorn makes a new scope for each head, and hands it to a cycle when that is whole.
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
        else:  # a client that never sent anything would take an answer for that to its first post
            self._end()

    def _end(self) -> None:
        if self.transport.get_write_buffer_size():
            self._close()
        else:  # TLS would wait for the client to agree
            self.transport.abort()

    def _close(self) -> None:
        """End it when all is taken, or too little of it."""
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
                # What is refused came behind a request that is being answered.
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
        # If it were closed while the client still sends, it would be reset, and the answer lost.
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)
