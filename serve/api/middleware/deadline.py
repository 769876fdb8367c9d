"""The deadline of a request, and its cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.error_responses import truncate_for_message
from serve.errors import BadRequestError, DeadlineExceededError

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"

# Ray Serve reads the same header and aborts the request with its own 408, in plain text. Serve's
# clock starts earlier, so this deadline ends earlier, by more than a request takes from Serve's
# proxy to the gateway. Measured with requests of 1 MB on two busy cores: behind HAProxy, the
# gateway's response came first 20 times of 20; behind Serve's own proxy, bodies take so long that
# Serve's 408 sometimes came first.
_MARGIN_SHARE = 0.1
_MIN_MARGIN_S, _MAX_MARGIN_S = 0.05, 0.25


class ClientDisconnectedError(Exception):
    """The client disconnected: nobody waits for the response."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time at which a request is cancelled.

    Attributes:
        seconds: timeout of the request, in seconds.
        at: time of the deadline, on the clock of the running event loop.
    """

    seconds: float
    at: float

    @classmethod
    def from_header(cls, value: str | None, default_s: float, max_s: float) -> Deadline:
        """Return the deadline of a request that has just arrived.

        Args:
            value: value of the header `X-Request-Timeout-Seconds`; None if the header is missing.
            default_s: setting `request_timeout_s`, used if the header is missing.
            max_s: setting `max_request_timeout_s`; larger values of the header are lowered to it.

        Raises:
            BadRequestError: the value is not a positive number.
        """
        seconds = min(default_s if value is None else _parse_seconds(value), max_s)
        margin = min(max(_MARGIN_SHARE * seconds, _MIN_MARGIN_S), _MAX_MARGIN_S, seconds / 2)
        return cls(seconds, asyncio.get_running_loop().time() + seconds - margin)

    def build_error(self) -> DeadlineExceededError:
        """Return the error for a request that exceeds this deadline."""
        return DeadlineExceededError(
            f"the request did not complete within {self.seconds:g} s and was cancelled; send fewer "
            f"conversations at once, or allow more time with the header {TIMEOUT_HEADER}"
        )


async def run_with_deadline(
    app: ASGIApp,
    scope: Scope,
    body: bytes,
    streams: tuple[Receive, Send],
    deadline: Deadline,
    reserve_bytes: Callable[[int], None],
) -> None:
    """Run an application on a body, and cancel it at the deadline or when the client disconnects.

    Once the application starts its response, it is not cancelled any more: a response that has
    begun is never broken off.

    Args:
        app: the application.
        scope: scope of the request.
        body: the whole body.
        streams: `receive` and `send` of the server.
        deadline: deadline of the request.
        reserve_bytes: called with the size of each chunk of the response before it is sent.

    Raises:
        DeadlineExceededError: the application was cancelled at the deadline.
        ClientDisconnectedError: the application was cancelled because the client disconnected.
    """
    receive, send = streams
    is_disconnected = asyncio.Event()
    unread_bodies = [body]
    timeout = asyncio.timeout_at(deadline.at)

    async def replay_body() -> Message:
        if unread_bodies:
            return {"type": "http.request", "body": unread_bodies.pop(), "more_body": False}
        await is_disconnected.wait()
        return {"type": "http.disconnect"}

    async def send_and_reserve(message: Message) -> None:
        if message["type"] == "http.response.start":
            if not timeout.expired():
                timeout.reschedule(None)
        elif body := message.get("body"):
            reserve_bytes(len(body))
        await send(message)

    async def watch_connection() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        is_disconnected.set()
        if timeout.when() is not None and not timeout.expired():
            timeout.reschedule(0)

    watcher = asyncio.create_task(watch_connection())
    try:
        async with timeout:
            await app(scope, replay_body, send_and_reserve)
    except TimeoutError:
        if not timeout.expired():
            raise
        if is_disconnected.is_set():
            raise ClientDisconnectedError from None
        raise deadline.build_error() from None
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


def _parse_seconds(value: str) -> float:
    try:
        seconds = math.nan if "_" in value else float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadRequestError(
            f"the header {TIMEOUT_HEADER} is {truncate_for_message(value)!r}; it must be a "
            "positive number of seconds"
        )
    return seconds
