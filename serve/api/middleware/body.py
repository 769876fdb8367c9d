"""The body of a request, from its headers to its last byte: refused early, waited for briefly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from email.message import Message as Headed

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
# A body has this long before its rate counts: connections begin slowly.
_GRACE_S = 5.0


def has_body(headers: Headers) -> bool:
    """Whether the request says that a body follows."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def check_headers(headers: Headers, max_bytes: int) -> None:
    """Refuse by its headers a body that would not be taken.

    Raises:
        UnsupportedMediaTypeError: it is no plain JSON in UTF-8.
        BodyTooLargeError: it says that it is too long.
        BadRequestError: it does not say how long it is, but something else.
    """
    if not has_body(headers):
        return
    _check_content_type(headers.get("content-type"))
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {truncate_for_message(encoding)!r}; send it as it is, without "
            "Content-Encoding"
        )
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadRequestError(
            f"Content-Length is {truncate_for_message(length)!r}; it must be a number of bytes"
        )
    # A number of very many digits would not even be converted.
    if len(length) > 18 or int(length) > max_bytes:
        raise _build_too_large_error(max_bytes)


async def read_body(
    receive: Receive, reserve_bytes: Callable[[int], None], settings: Settings, deadline: Deadline
) -> bytes:
    """All of a body.

    Args:
        receive: of the request.
        hold: told the number of bytes of each part before it is kept; may refuse it.
        settings: how many bytes it may have, seconds from now to arrive in, and its least rate.
        deadline: of the request.

    Raises:
        BodyTooLargeError: it goes on after `max_body_bytes`.
        BodyTimeoutError, DeadlineExceededError: it did not arrive in time, or too slowly.
        ClientGoneError: the client hung up.
    """
    began = asyncio.get_running_loop().time()
    latest = began + settings.body_timeout_s
    slowest = math.inf
    if settings.min_body_rate:
        slowest = began + _GRACE_S
    body = bytearray()
    try:
        async with asyncio.timeout_at(min(latest, slowest, deadline.at)) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnectedError
                part = message.get("body", b"")
                if len(body) + len(part) > settings.max_body_bytes:
                    raise _build_too_large_error(settings.max_body_bytes)
                reserve_bytes(len(part))
                body += part
                if not message.get("more_body", False):
                    return bytes(body)
                if settings.min_body_rate and not limit.expired():
                    slowest = began + _GRACE_S + len(body) / settings.min_body_rate
                    limit.reschedule(min(latest, slowest, deadline.at))
    except TimeoutError:
        if deadline.at < min(latest, slowest):
            raise deadline.build_error() from None
        came = f"only {len(body):,} bytes of the body arrived in {min(latest, slowest) - began:g} s"
        if slowest < latest:
            came += f", fewer than {settings.min_body_rate:,} a second"
        raise BodyTimeoutError(f"{came}; send it faster, or in smaller posts") from None


def _check_content_type(content_type: str | None) -> None:
    if content_type == "application/json":  # what nearly all send
        return
    hint = "send JSON with the header Content-Type: application/json"
    if content_type is None:
        raise UnsupportedMediaTypeError(f"the body has no Content-Type; {hint}")
    header = Headed()
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
