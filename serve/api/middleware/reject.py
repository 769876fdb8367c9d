"""Sends an error response to a request whose body was not read, or only partly."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rm_core import RewardError
from serve.api.error_responses import build_error_response
from serve.telemetry.logging import current_request

# The rest of the body is read up to these limits, so that its sender receives the response.
_LINGER_BYTES = 256 * 2**20
_LINGER_S = 5.0


async def send_rejection(
    error: RewardError,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    close: bool | None = None,
    page: Response | None = None,
) -> None:
    """Send an error response, or `page` instead of the JSON body of the error.

    By default, the connection is closed if the rest of the body may be too long to read. If `close`
    is false, the server reads the rest, so that the connection can serve the next request.
    """
    current_request().code = error.code
    response = page or build_error_response(error, scope)
    if close is None:
        limit = scope["app"].state.settings.max_body_bytes
        close = not _can_keep_alive(Headers(scope=scope), limit)
    if not close:
        await response(scope, receive, send)
        return
    response.headers["Connection"] = "close"
    start = {"type": "http.response.start", "status": response.status_code}
    await send(start | {"headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    # The whole response is sent. Closing the connection while the client is still sending would
    # reset it, and the client would lose the response.
    await _drop_rest(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _can_keep_alive(headers: Headers, max_bytes: int) -> bool:
    """Return whether the request has no body, or a body of a known length up to `max_bytes`."""
    if "transfer-encoding" in headers:
        return False
    length = headers.get("content-length", "0")
    is_sent = "expect" not in headers  # otherwise the client may wait before it sends the body
    return length == "0" or (is_sent and length.isdigit() and int(length[:18]) <= max_bytes)


async def _drop_rest(receive: Receive) -> None:
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while num_bytes <= _LINGER_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):  # also if the client disconnects
                    return
