"""How long a request may take, and whether its client still waits for the answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.error_responses import truncate_for_message
from serve.errors import BadRequestError, DeadlineExceededError

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"

# Ray Serve reads the same header and cuts the request off with a 408 of its own, in plain text. Its
# clock starts first, so ours ends sooner, by more than the way from there to here takes. Measured
# with posts of 1 MB on two busy cores: behind HAProxy ours came first 20 times of 20; behind
# Serve's own proxy bodies take so long that its 408 sometimes did.
_MARGIN_SHARE = 0.1
_MIN_MARGIN_S, _MAX_MARGIN_S = 0.05, 0.25


class ClientDisconnectedError(Exception):
    """The client hung up: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request is given up.

    Attributes:
        seconds: that it may take.
        at: when they are over, by the clock of the running event loop.
    """

    seconds: float
    at: float

    @classmethod
    def from_header(cls, value: str | None, default_s: float, max_s: float) -> Deadline:
        """The deadline of a request that has just come.

        Args:
            sent: value of the header `X-Request-Timeout-Seconds`, if it came.
            default_s: setting `request_timeout_s`.
            most_s: setting `max_request_timeout_s`; whoever asks for more gets this.

        Raises:
            BadRequestError: the header is no positive number.
        """
        seconds = min(default_s if value is None else _parse_seconds(value), max_s)
        margin = min(max(_MARGIN_SHARE * seconds, _MIN_MARGIN_S), _MAX_MARGIN_S, seconds / 2)
        return cls(seconds, asyncio.get_running_loop().time() + seconds - margin)

    def build_error(self) -> DeadlineExceededError:
        """What a request is answered that did not keep it."""
        return DeadlineExceededError(
            f"the request was not done within {self.seconds:g} s and was given up; send fewer "
            f"conversations at once, or give it more time with the header {TIMEOUT_HEADER}"
        )


async def run_with_deadline(
    app: ASGIApp,
    scope: Scope,
    body: bytes,
    streams: tuple[Receive, Send],
    deadline: Deadline,
    reserve_bytes: Callable[[int], None],
) -> None:
    """Run an application on a body that was read, and cancel it when nobody needs its answer.

    Once it answers it is left alone: an answer that has begun is never spoilt.

    Args:
        app: what answers.
        scope: of the request.
        body: all of it.
        streams: the server's `receive` and `send`.
        deadline: of the request.
        hold: told the number of bytes of each part of the answer before it is sent.

    Raises:
        DeadlineExceededError: it was cancelled at the deadline.
        ClientGoneError: it was cancelled since the client hung up.
    """
    receive, send = streams
    gone = asyncio.Event()
    parts = [body]
    limit = asyncio.timeout_at(deadline.at)

    async def replay() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            if not limit.expired():
                limit.reschedule(None)
        elif body := message.get("body"):
            reserve_bytes(len(body))
        await send(message)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if limit.when() is not None and not limit.expired():
            limit.reschedule(0)

    watcher = asyncio.create_task(watch())
    try:
        async with limit:
            await app(scope, replay, tell)
    except TimeoutError:
        if not limit.expired():
            raise
        raise (ClientDisconnectedError() if gone.is_set() else deadline.build_error()) from None
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
            f"the header {TIMEOUT_HEADER} is {truncate_for_message(value)!r}; it must be a positive number of seconds"
        )
    return seconds
