"""How a request is refused whose body was not read, or not to its end."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rm_core import RewardError
from serve.api.error_responses import build_error_response
from serve.api.middleware.body import has_body
from serve.telemetry.context import current_request

# How much of a body is still read, so that its sender gets to see the answer, and for how long.
_LINGER_BYTES = 256 * 2**20
_LINGER_S = 5.0


async def send_rejection(
    error: RewardError,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    close: bool,
    page: Response | None = None,
) -> None:
    """Answer a request with an error.

    Args:
        error: the answer.
        scope: of the request.
        receive: of the server; the rest of the body.
        send: of the server.
        close: whether the connection ends with the answer. If not, the server reads the rest of
            the body, for the sake of the next request.
        page: sent in place of the error's own body.
    """
    current_request().code = error.code
    response = page or build_error_response(error, scope)
    if not close:
        await response(scope, receive, send)
        return
    response.headers["Connection"] = "close"
    start = {"type": "http.response.start", "status": response.status_code}
    await send(start | {"headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    # The whole answer is out. If the connection were closed while the client still sends, it would
    # be reset, and the answer lost on the way.
    await _drop_rest(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def can_keep_alive(headers: Headers, max_bytes: int) -> bool:
    """Whether what follows of a request is a body of a known, allowed length, or none."""
    length = headers.get("content-length", "0")
    known = "transfer-encoding" not in headers and "expect" not in headers
    return not has_body(headers) or (known and length.isdigit() and int(length[:18]) <= max_bytes)


async def _drop_rest(receive: Receive) -> None:
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while num_bytes <= _LINGER_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):  # so it is at a hang-up
                    return
