"""Limits of one scoring request: its place among the others, its body, and its deadline.

A request is rejected as early as possible: by its headers before its body is read, and before any
of the body is parsed.

Clients share the buffer for bodies. A client may use as many bytes as remain free for all others
after that: one client alone may use half of the buffer, two clients a third each, and so on. No
number of stalled bodies of one client can lock another client out.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from email.message import Message as EmailMessage

from starlette.datastructures import Headers, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_core import OverloadedError, RewardError
from serve.api.error_responses import truncate_for_message
from serve.api.middleware.access import find_lifecycle_route
from serve.api.middleware.ray_proxy import HIDDEN_TIMEOUT_HEADER, TIMEOUT_HEADER
from serve.api.middleware.reject import send_rejection
from serve.config.settings import Settings
from serve.errors import (
    BadRequestError,
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineExceededError,
    TooManyRequestsError,
    UnsupportedMediaTypeError,
)
from serve.telemetry.logging import ANONYMOUS, current_request

# Bodies of lifecycle routes name a folder at most.
_MAX_ADMIN_BODY_BYTES = 64 * 2**10
_UTF8 = {"utf-8", "utf8"}
# The minimum rate of a body applies only after this time: connections start slowly.
_GRACE_S = 5.0

# Ray Serve reads the header of the deadline too and aborts the request with its own 408, in plain
# text. Serve's clock starts earlier, so this deadline ends earlier, by more than a request takes
# from Serve's proxy to the gateway. Measured with requests of 1 MB on two busy cores: behind
# HAProxy, the gateway's response came first 20 times of 20; behind Serve's own proxy, bodies take
# so long that Serve's 408 sometimes came first.
_MARGIN_SHARE = 0.1
_MIN_MARGIN_S, _MAX_MARGIN_S = 0.05, 0.25


class ClientDisconnectedError(Exception):
    """The client disconnected: nobody waits for the response."""


class RequestLimitsMiddleware:
    """Applies admission control, body limits and the deadline to requests with method POST.

    `check_capacity` raises `OverloadedError` while no scoring request of a client can be accepted.
    """

    def __init__(
        self, app: ASGIApp, admission: Admission, check_capacity: Callable[[str], None]
    ) -> None:
        self._app = app
        self._admission = admission
        self._check_capacity = check_capacity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, within the limits if its method is POST."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if find_lifecycle_route(scope) is not None:
            await self._run_without_deadline(scope, receive, send)
            return
        headers, settings = Headers(scope=scope), scope["app"].state.settings
        client = current_request().client
        is_read = False
        with self._admission.create_slot(client) as slot:
            try:
                deadline = Deadline.from_headers(headers, settings)
                _check_headers(headers, settings.max_body_bytes)
                slot.start_receiving()
                # Before reading the body: under overload, rejecting a request must be cheap.
                self._check_capacity(client)
                body = await _read_body(receive, slot, settings, deadline)
                is_read = True
                slot.start_running()  # only now: a slow body must not use the slot of a request
                await self._run(scope, receive, send, body, deadline, slot)
            except ClientDisconnectedError:  # `RequestLogMiddleware` records it
                pass
            except RewardError as error:
                slot.release()
                close = None
                if is_read:
                    close = False
                elif isinstance(error, BodyTimeoutError):
                    close = True
                await send_rejection(error, scope, receive, send, close=close)

    async def _run_without_deadline(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request of a lifecycle route, whose body is small; never cancel it."""
        settings = scope["app"].state.settings
        try:
            _check_headers(Headers(scope=scope), _MAX_ADMIN_BODY_BYTES)
            body = await _read_small_body(receive, settings.body_timeout_s)
        except ClientDisconnectedError:
            return
        except RewardError as error:
            await send_rejection(error, scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay_body() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay_body, send)

    async def _run(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: bytes,
        deadline: Deadline,
        slot: AdmissionSlot,
    ) -> None:
        """Run the application on a body; cancel it at the deadline or when the client disconnects.

        Once the application starts its response, it is not cancelled any more: a response that has
        begun is never broken off.

        Raises:
            DeadlineExceededError: the application was cancelled at the deadline.
            ClientDisconnectedError: the application was cancelled because the client disconnected.
        """
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
                slot.add_response_bytes(len(body))
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
                await self._app(scope, replay_body, send_and_reserve)
        except TimeoutError:
            if not timeout.expired():
                raise
            if is_disconnected.is_set():
                raise ClientDisconnectedError from None
            raise deadline.build_error() from None
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time at which a request is cancelled."""

    seconds: float  # timeout of the request, in seconds
    at: float  # time of the deadline, on the clock of the running event loop

    @classmethod
    def from_headers(cls, headers: Headers, settings: Settings) -> Deadline:
        """Return the deadline of a request that has just arrived.

        Without `X-Request-Timeout-Seconds`, the setting `request_timeout_s` counts; larger values
        are lowered to `max_request_timeout_s`.
        """
        value = headers.get(TIMEOUT_HEADER, headers.get(HIDDEN_TIMEOUT_HEADER))
        requested = settings.request_timeout_s if value is None else _parse_seconds(value)
        seconds = min(requested, settings.max_request_timeout_s)
        margin = min(max(_MARGIN_SHARE * seconds, _MIN_MARGIN_S), _MAX_MARGIN_S, seconds / 2)
        return cls(seconds, asyncio.get_running_loop().time() + seconds - margin)

    def build_error(self) -> DeadlineExceededError:
        """Return the error for a request that exceeds this deadline."""
        return DeadlineExceededError(
            f"the request did not complete within {self.seconds:g} s and was cancelled; send fewer "
            f"conversations at once, or allow more time with the header {TIMEOUT_HEADER}"
        )


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


def _check_headers(headers: Headers, max_bytes: int) -> None:
    """Reject a body by its headers, before reading it: by type, encoding or length."""
    length = headers.get("content-length", "0")
    if length == "0" and "transfer-encoding" not in headers:  # no body
        return
    _check_content_type(headers.get("content-type"))
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {truncate_for_message(encoding)!r}; send it unencoded, "
            "without Content-Encoding"
        )
    if not (length.isascii() and length.isdigit()):
        raise BadRequestError(
            f"Content-Length is {truncate_for_message(length)!r}; it must be a number of bytes"
        )
    # Python refuses to convert a number of several thousand digits.
    if len(length) > 18 or int(length) > max_bytes:
        raise _build_too_large_error(max_bytes)


async def _read_small_body(receive: Receive, timeout_s: float) -> bytes:
    """Read a body of at most `_MAX_ADMIN_BODY_BYTES`."""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnectedError
                body += message.get("body", b"")
                if len(body) > _MAX_ADMIN_BODY_BYTES:
                    raise _build_too_large_error(_MAX_ADMIN_BODY_BYTES)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyTimeoutError(
            f"the body did not arrive in {timeout_s:g} s; send it again"
        ) from None


async def _read_body(
    receive: Receive, slot: AdmissionSlot, settings: Settings, deadline: Deadline
) -> bytes:
    """Read a whole body; the slot has to accept each chunk before the chunk is kept."""
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
                slot.add_body_bytes(len(chunk))
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


@dataclass(slots=True)
class _Usage:
    """Resources that requests use."""

    num_receiving: int = 0  # number of requests whose bodies are being read
    num_running: int = 0  # number of requests that are being processed
    body_bytes: int = 0  # bytes of buffered bodies
    response_bytes: int = 0  # bytes of responses that the clients have not read yet

    @property
    def num_bytes(self) -> int:
        return self.body_bytes + self.response_bytes

    def add(self, changes: Mapping[str, int]) -> None:
        for name, number in changes.items():
            setattr(self, name, getattr(self, name) + number)


class Admission:
    """The resources that all requests of a process use. Not thread-safe: for one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._all = _Usage()
        self._by_client: defaultdict[str, _Usage] = defaultdict(_Usage)

    @property
    def num_running(self) -> int:
        """Number of requests that are being processed."""
        return self._all.num_running

    @property
    def num_bytes(self) -> int:
        """Buffered bytes of bodies and responses."""
        return self._all.num_bytes

    def create_slot(self, client: str) -> AdmissionSlot:
        """Return the slot of a new request of a client, which uses no resources yet."""
        return AdmissionSlot(self, client)

    def _check_requests(self, client: str, *, is_receiving: bool) -> None:
        settings, usage = self._state.settings, self._by_client.get(client)
        # Without keys, everyone is one client: trainers never retry a 4xx, so they must get a 503.
        if usage is not None and client != ANONYMOUS:
            _check_number(usage.num_running, settings.max_requests_per_key, "running")
        if self._all.num_running >= settings.max_requests:
            raise OverloadedError(
                f"{settings.max_requests:,} requests are running, the limit of the service; send "
                "the request again"
            )
        if is_receiving and usage is not None and client != ANONYMOUS:
            _check_number(usage.num_receiving, settings.max_requests_per_key, "being received")

    def _check_bytes(self, client: str, number: int) -> None:
        settings, usage = self._state.settings, self._by_client[client]
        limit, body_bytes = settings.max_buffered_bytes, self._all.body_bytes + number
        # One body must always fit.
        share = max(settings.max_body_bytes, limit - body_bytes)
        if client != ANONYMOUS and usage.num_bytes + number > share:
            raise TooManyRequestsError(
                f"your requests and the responses that you have not read use {usage.num_bytes:,} "
                f"bytes, and the limit of one client is {share:,} now; wait for some of them"
            )
        if body_bytes + usage.response_bytes > limit:
            raise OverloadedError(
                f"the buffered bodies have {limit:,} bytes, the limit of the service; send the "
                "request again"
            )

    def _add(self, client: str, changes: Mapping[str, int]) -> None:
        self._all.add(changes)
        usage = self._by_client[client]
        usage.add(changes)
        if not (usage.num_receiving or usage.num_running or usage.num_bytes):
            del self._by_client[client]  # the number of clients over time is unbounded


def _check_number(number: int, limit: int, state: str) -> None:
    if number >= limit:
        raise TooManyRequestsError(
            f"{limit:,} of your requests are {state}, the limit of one client; wait for some of "
            "them, and put more conversations into each"
        )


class AdmissionSlot:
    """Resources of one request; a context manager that releases all of them on exit.

    A method raises `TooManyRequestsError` if this client, or `OverloadedError` if all clients
    together, would use more than the limit; the request then uses what it used before.
    """

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._usage = _Usage()

    def start_receiving(self) -> None:
        """Count the request as being received, if it could be started now."""
        self._admission._check_requests(self._client, is_receiving=True)
        self._add(num_receiving=1)

    def add_body_bytes(self, number: int) -> None:
        """Reserve `number` more bytes for the body."""
        self._admission._check_bytes(self._client, number)
        self._add(body_bytes=number)

    def start_running(self) -> None:
        """Count the request as running, and no longer as being received."""
        self._admission._check_requests(self._client, is_receiving=False)
        self._add(num_receiving=-self._usage.num_receiving, num_running=1)

    def add_response_bytes(self, number: int) -> None:
        """Reserve `number` more bytes for the response; never rejected."""
        self._add(response_bytes=number)

    def release(self) -> None:
        """Release all resources of the request. May be called again."""
        self._add(**{name: -number for name, number in asdict(self._usage).items()})

    def _add(self, **changes: int) -> None:
        self._usage.add(changes)
        self._admission._add(self._client, changes)

    def __enter__(self) -> AdmissionSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
