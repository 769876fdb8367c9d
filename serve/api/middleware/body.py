"""Checks the headers of a request's body and reads the body, within limits of size and time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from email.message import Message as EmailMessage

from starlette.datastructures import Headers
from starlette.types import Receive

from serve.api.error_responses import truncate_for_message
from serve.api.middleware.deadline import ClientDisconnectedError, Deadline
from serve.config.settings import Settings
from serve.errors import (
    BadRequestError,
    BodyTimeoutError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
)

_UTF8 = {"utf-8", "utf8"}
# The minimum rate applies only after this time: connections start slowly.
_GRACE_S = 5.0


def has_body(headers: Headers) -> bool:
    """Return whether the headers announce a body."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def check_headers(headers: Headers, max_bytes: int) -> None:
    """Reject a body by its headers, before reading it.

    Raises:
        UnsupportedMediaTypeError: the body is not plain JSON in UTF-8.
        BodyTooLargeError: Content-Length exceeds `max_bytes`.
        BadRequestError: Content-Length is not a number.
    """
    if not has_body(headers):
        return
    _check_content_type(headers.get("content-type"))
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {truncate_for_message(encoding)!r}; send it unencoded, "
            "without Content-Encoding"
        )
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadRequestError(
            f"Content-Length is {truncate_for_message(length)!r}; it must be a number of bytes"
        )
    # Python refuses to convert a number of several thousand digits.
    if len(length) > 18 or int(length) > max_bytes:
        raise _build_too_large_error(max_bytes)


async def read_body(
    receive: Receive, reserve_bytes: Callable[[int], None], settings: Settings, deadline: Deadline
) -> bytes:
    """Read a whole body.

    Args:
        receive: `receive` of the request.
        reserve_bytes: called with the size of each chunk before the chunk is kept; may raise.
        settings: limits of the body: its size, the seconds in which it has to arrive, its rate.
        deadline: deadline of the request.

    Raises:
        BodyTooLargeError: the body is longer than `max_body_bytes`.
        BodyTimeoutError, DeadlineExceededError: the body did not arrive in time, or too slowly.
        ClientDisconnectedError: the client disconnected.
    """
    started_at = asyncio.get_running_loop().time()
    timeout_at = started_at + settings.body_timeout_s
    too_slow_at = math.inf
    if settings.min_body_rate:
        too_slow_at = started_at + _GRACE_S
    body = bytearray()
    try:
        async with asyncio.timeout_at(min(timeout_at, too_slow_at, deadline.at)) as timeout:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnectedError
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > settings.max_body_bytes:
                    raise _build_too_large_error(settings.max_body_bytes)
                reserve_bytes(len(chunk))
                body += chunk
                if not message.get("more_body", False):
                    return bytes(body)
                if settings.min_body_rate and not timeout.expired():
                    too_slow_at = started_at + _GRACE_S + len(body) / settings.min_body_rate
                    timeout.reschedule(min(timeout_at, too_slow_at, deadline.at))
    except TimeoutError:
        if deadline.at < min(timeout_at, too_slow_at):
            raise deadline.build_error() from None
        elapsed_s = min(timeout_at, too_slow_at) - started_at
        progress = f"only {len(body):,} bytes of the body arrived in {elapsed_s:g} s"
        if too_slow_at < timeout_at:
            progress += f", fewer than {settings.min_body_rate:,} a second"
        raise BodyTimeoutError(f"{progress}; send it faster, or in smaller requests") from None


def _check_content_type(content_type: str | None) -> None:
    if content_type == "application/json":  # nearly all clients
        return
    hint = "send JSON with the header Content-Type: application/json"
    if content_type is None:
        raise UnsupportedMediaTypeError(f"the body has no Content-Type; {hint}")
    header = EmailMessage()
    header["content-type"] = content_type
    subtype = header.get_content_subtype()
    is_json = subtype == "json" or subtype.endswith("+json")
    if header.get_content_maintype() != "application" or not is_json:
        raise UnsupportedMediaTypeError(
            f"the body's Content-Type is {truncate_for_message(content_type)!r}; {hint}"
        )
    charset = str(header.get_param("charset", "utf-8")).lower()
    if charset not in _UTF8:
        raise UnsupportedMediaTypeError(
            f"the body's charset is {truncate_for_message(charset)!r}; send it in UTF-8"
        )


def _build_too_large_error(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has more than {max_bytes:,} bytes, the limit; split it into several requests, "
        "or raise the service's setting `max_body_bytes`"
    )
