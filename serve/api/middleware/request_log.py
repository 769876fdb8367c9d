"""The outermost middleware: creates the record of a request, then logs and counts the request.

`RequestLogMiddleware` creates the `RequestContext` that the inner layers fill in, accepts or
generates `X-Request-Id`, adds the durations of the stages to the response headers, and reports to
log, metrics and traces once the response is complete or the client has disconnected. Of the data
that a client sends, only a safe request id is logged: paths appear as the template of their route.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.middleware.access import (
    COMPAT_LIFECYCLE_PATHS,
    LIFECYCLE_PATHS,
    OPEN_PATHS,
    find_lifecycle_route,
)
from serve.telemetry.logging import CURRENT_REQUEST, RequestContext, accept_request_id
from serve.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serve.api.middleware.tracing import OtlpTracer

logger = logging.getLogger(__name__)

REQUEST_CONTEXT_KEY = "skyreward.record"
NOSNIFF = (b"x-content-type-options", b"nosniff")
"""Header of every response: browsers must not guess the content type."""

CLIENT_CLOSED_REQUEST = 499
UNMATCHED = "unmatched"
_OTHER_ROUTES = frozenset({UNMATCHED, *COMPAT_LIFECYCLE_PATHS, *LIFECYCLE_PATHS.values()})

# At most one line about requests with a missing or wrong key per interval.
_AUTH_FAILURE_LOG_INTERVAL_S = 10.0

# Exceptions that end a task or the process, and are not failures.
_EXIT_EXCEPTIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class InFlightRequests:
    """The scoring requests that are in flight: the metric, and what a shutdown waits for.

    A context manager for each of them, from its arrival to the end of its response. Not
    thread-safe: for one event loop.
    """

    def __init__(self) -> None:
        self.number = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __enter__(self) -> None:
        self.number += 1
        self._is_idle.clear()

    def __exit__(self, *_: object) -> None:
        self.number -= 1
        if not self.number:
            self._is_idle.set()

    async def wait_until_idle(self) -> None:
        """Return once no request is in flight."""
        await self._is_idle.wait()


class _AuthFailureThrottle:
    """Limits the log lines about missing or wrong keys to one per interval.

    Anyone can cause any number of such requests. The next line counts the suppressed lines.
    """

    def __init__(self) -> None:
        self._next_at = -math.inf
        self._num_suppressed = 0

    def take_line_fields(self, now: float) -> dict[str, int] | None:
        """Return the extra fields of a line at time `now`; None if the line is suppressed."""
        if now < self._next_at:
            self._num_suppressed += 1
            return None
        self._next_at = now + _AUTH_FAILURE_LOG_INTERVAL_S
        num_suppressed, self._num_suppressed = self._num_suppressed, 0
        return {"left_out": num_suppressed} if num_suppressed else {}


class _Exchange:
    """`receive` and `send` of one request, which record what becomes of the response.

    If `echo`, the response gets `X-Request-Id`.
    """

    def __init__(self, context: RequestContext, receive: Receive, send: Send, echo: bool) -> None:
        self._context = context
        self._receive = receive
        self._send = send
        self._echo = echo
        self._started = time.perf_counter()
        self._status: int | None = None
        self._is_complete = self._is_disconnected = False

    async def receive(self) -> Message:
        """Receive a message of the client, or of the server that the client has disconnected."""
        message = await self._receive()
        self._is_disconnected |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response, with our headers."""
        is_last = False
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers()]}
        # Checked before sending: after the last message, servers always report a disconnect.
        elif not message.get("more_body", False) and not self._is_disconnected:
            is_last = True
        await self._send(message)
        self._is_complete |= is_last

    def finish(self, error: BaseException | None) -> None:
        """Record status and duration; `error` is the exception that left the application."""
        context = self._context
        context.total_s = time.perf_counter() - self._started
        if self._is_complete and self._status is not None:
            context.status = self._status
        # A server that cannot send raises OSError; a server that notices the disconnect cancels.
        elif not (
            error is None
            or isinstance(error, (*_EXIT_EXCEPTIONS, OSError))
            or self._is_disconnected
        ):
            context.status = 500
            context.code = context.code or "internal_error"
        else:
            context.status = CLIENT_CLOSED_REQUEST
            context.code = "client_closed_request"

    def _headers(self) -> Iterator[tuple[bytes, bytes]]:
        context = self._context
        yield NOSNIFF
        if self._echo:
            yield b"x-request-id", context.id.encode()
        if _is_scoring_request(context) and context.model is not None:
            # Whole milliseconds, under the names of text-embeddings-inference.
            stages = {
                b"x-tokenization-time": context.tokenize_s,
                b"x-queue-time": context.queue_duration_s,
                b"x-inference-time": context.inference_s,
                b"x-total-time": time.perf_counter() - self._started,
            }
            for name, seconds in stages.items():
                yield name, str(round(1000 * seconds)).encode()


class RequestLogMiddleware:
    """The outermost middleware.

    Args:
        app: the application.
        metrics: metrics that count requests.
        in_flight: counts the scoring requests in flight.
        echo_request_id: whether to add `X-Request-Id` to responses; False if the server in front
            does, as Ray Serve's proxy.
        route_templates: templates of all routes; a trailing `/*` matches everything below.
        tracer: receives finished requests; None disables tracing.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        in_flight: InFlightRequests,
        echo_request_id: bool,
        route_templates: Iterable[str],
        tracer: OtlpTracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = in_flight
        self._echo = echo_request_id
        self._templates = set(route_templates)
        self._mounts = tuple(t.removesuffix("*") for t in self._templates if t.endswith("/*"))
        self._tracer = tracer
        self._auth_failures = _AuthFailureThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection; log and count the request when it is finished."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = dict(scope["headers"]).get(b"x-request-id")
        context = RequestContext(
            accept_request_id(header.decode("latin-1") if header else None),
            method=scope["method"] if scope["method"] in _METHODS else "OTHER",
            route=self._match_route(scope),
        )
        exchange = _Exchange(context, receive, send, self._echo)
        scope[REQUEST_CONTEXT_KEY] = context
        token = CURRENT_REQUEST.set(context)
        error: BaseException | None = None
        try:
            with self._in_flight if _is_scoring_request(context) else contextlib.nullcontext():
                await self._app(scope, exchange.receive, exchange.send)
        except BaseException as raised:
            error = raised
            if isinstance(raised, (Exception, *_EXIT_EXCEPTIONS)):
                raise
            # For example a panic in Rust, which no outer layer handles.
            raise RuntimeError(f"{type(raised).__name__} while handling a request") from raised
        finally:
            exchange.finish(error)
            self._report(context, scope)
            CURRENT_REQUEST.reset(token)

    def _match_route(self, scope: Scope) -> str:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._templates:
            return path
        if (admin_route := find_lifecycle_route(scope)) in self._templates:
            return str(admin_route)
        return next((f"{m}*" for m in self._mounts if path.startswith(m)), UNMATCHED)

    def _report(self, context: RequestContext, scope: Scope) -> None:
        self._metrics.record_request(context)
        is_status_route = context.route in OPEN_PATHS
        level = logging.DEBUG if is_status_route else logging.INFO
        extra_fields = (
            self._auth_failures.take_line_fields(time.monotonic()) if context.status == 401 else {}
        )
        if extra_fields is not None:
            fields = _build_log_fields(context) | extra_fields
            logger.log(level, "request", extra={"fields": fields})
        if self._tracer is not None and not is_status_route:
            self._tracer.trace(context, scope["headers"])


def _is_scoring_request(context: RequestContext) -> bool:
    """Return whether the request processes conversations."""
    return context.method == "POST" and context.route not in _OTHER_ROUTES


def _build_log_fields(context: RequestContext) -> dict[str, Any]:
    """Return the fields of the log line; the formatters add the request id to every line."""
    fields: dict[str, Any] = {
        "method": context.method,
        "route": context.route,
        "status": context.status,
        "code": context.code,
        "client": context.client,
    }
    if context.model is not None:
        fields |= {
            "model": context.model,
            "conversations": context.num_conversations,
            "errors": context.num_errors,
            "tokens": context.num_tokens,
            "computed": context.num_computed_tokens,
            "cached": context.num_cached_tokens,
            "tokenize_s": round(context.tokenize_s, 6),
            "queue_duration_s": round(context.queue_duration_s, 6),
            "inference_s": round(context.inference_s, 6),
        }
    fields["total_s"] = round(context.total_s, 6)
    return {name: value for name, value in fields.items() if value is not None}
