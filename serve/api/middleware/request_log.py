"""The outermost layer of the application: one record, one line, one count of every request.

It makes the `RequestContext` that everything further in fills, takes or makes `X-Request-Id`, puts
the times of the stages on the answer, and tells log, metrics and traces once the answer is complete
or nobody waits for it any more. Nothing a caller chose is logged but an acceptable request id:
paths appear as the template of their route.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.telemetry.context import RequestContext, bind_request, unbind_request
from serve.telemetry.logging import accept_request_id
from serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_CONTEXT_KEY = "skyreward.record"
NOSNIFF = (b"x-content-type-options", b"nosniff")
"""A header of every answer: browsers shall not guess what it is."""

CLIENT_CLOSED_REQUEST = 499
UNMATCHED = "unmatched"

# Lines of requests without a right key.
_AUTH_FAILURE_LOG_INTERVAL_S = 10.0

_STATUS_ROUTES = {"/health", "/ready", "/metrics"}
# What ends a task or the process, and is no failure.
_EXIT_EXCEPTIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Tracer(Protocol):
    """What the middleware asks of `serve.api.middleware.tracing`."""

    def trace(self, exchange: Exchange, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Tell the collector of a request that is over."""
        ...


class _AuthFailureThrottle:
    """Which lines about keys that are missing or wrong are written: one in a while.

    Anybody may cause any number of them. What was left out is counted in the next line.
    """

    def __init__(self) -> None:
        self._next_at = -math.inf
        self._num_suppressed = 0

    def take_line_fields(self, now: float) -> dict[str, int] | None:
        """What the line at a time has to add; None if it is left out."""
        if now < self._next_at:
            self._num_suppressed += 1
            return None
        self._next_at = now + _AUTH_FAILURE_LOG_INTERVAL_S
        left_out, self._num_suppressed = self._num_suppressed, 0
        return {"left_out": left_out} if left_out else {}


class Exchange:
    """One request and what became of it.

    Attributes:
        record: what the layers further in know of it.
        method: of HTTP; `OTHER` if it is none of the usual ones.
        route: template of its route, or `unmatched`.
        started_ns: when it came, in nanoseconds since the epoch.
        status: what it was answered with; 499 if the client went away before, 500 after a bug.
        total_s: seconds from its arrival to its end.
    """

    def __init__(self, context: RequestContext, method: str, route: str) -> None:
        self.context = context
        self.method = method if method in _METHODS else "OTHER"
        self.route = route
        self.started_ns = time.time_ns()
        self.status = CLIENT_CLOSED_REQUEST
        self.total_s = 0.0
        self._started = time.perf_counter()
        self._status_sent: int | None = None
        self._is_last_message = self._is_complete = self._is_disconnected = False

    @property
    def is_scoring_request(self) -> bool:
        """Whether it asks for work on conversations."""
        return self.method == "POST" and self.route != UNMATCHED

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came."""
        return time.perf_counter() - self._started

    def mark_client_disconnected(self) -> None:
        """The server says that the client has gone."""
        self._is_disconnected = True

    def before_send(self, message: Message) -> None:
        """A part of the answer is about to be sent."""
        if message["type"] == "http.response.start":
            self._status_sent = message["status"]
        # Asked before it is sent: right after it, servers say that the client has gone in any case.
        elif not message.get("more_body", False) and not self._is_disconnected:
            self._is_last_message = True

    def after_send(self) -> None:
        """It has been sent."""
        self._is_complete = self._is_last_message

    def finish(self, error: BaseException | None) -> None:
        """It is over; `error` is what came out of the application."""
        self.total_s = self.elapsed_s
        if self._is_complete and self._status_sent is not None:
            self.status = self._status_sent
        # A server that cannot send raises OSError; one that saw the client go cancels.
        elif not (
            error is None
            or isinstance(error, (*_EXIT_EXCEPTIONS, OSError))
            or self._is_disconnected
        ):
            self.status = 500
            self.context.code = self.context.code or "internal_error"
        else:
            self.context.code = "client_closed_request"


class RequestLogMiddleware:
    """Pure ASGI middleware; to be added last, so that it is outermost.

    Args:
        app: what it goes around.
        metrics: where requests are counted.
        echo: whether to put `X-Request-Id` on answers.
        templates: of all routes; a trailing `/*` stands for everything below.
        tracer: None where no traces are wanted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        echo_request_id: bool,
        route_templates: Iterable[str],
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._echo = echo_request_id
        self._templates = set(route_templates)
        self._mounts = tuple(t.removesuffix("*") for t in self._templates if t.endswith("/*"))
        self._tracer = tracer
        self._auth_failures = _AuthFailureThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id")
        record = RequestContext(accept_request_id(sent.decode("latin-1") if sent else None))
        exchange = Exchange(record, scope["method"], self._match_route(scope))
        scope[REQUEST_CONTEXT_KEY] = record
        token = bind_request(record)
        if exchange.is_scoring_request:
            self._metrics.request_started()
        error: BaseException | None = None
        try:
            await self._app(
                scope, _wrap_receive(receive, exchange), self._wrap_send(send, exchange)
            )
        except BaseException as raised:
            error = raised
            if isinstance(raised, (Exception, *_EXIT_EXCEPTIONS)):
                raise
            # Such as a panic in Rust, to which nothing further out would have an answer.
            raise RuntimeError(f"{type(raised).__name__} while answering a request") from raised
        finally:
            if exchange.is_scoring_request:
                self._metrics.request_finished()
            exchange.finish(error)
            self._report(exchange, scope)
            unbind_request(token)

    def _match_route(self, scope: Scope) -> str:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._templates:
            return path
        return next((f"{m}*" for m in self._mounts if path.startswith(m)), UNMATCHED)

    def _wrap_send(self, send: Send, exchange: Exchange) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), NOSNIFF]
                if self._echo:
                    headers.append((b"x-request-id", exchange.context.id.encode()))
                if exchange.is_scoring_request and exchange.context.model is not None:
                    headers += _stage_times(exchange)
                message = {**message, "headers": headers}
            exchange.before_send(message)
            await send(message)
            exchange.after_send()

        return answer

    def _report(self, exchange: Exchange, scope: Scope) -> None:
        record = exchange.context
        self._metrics.record_request(record, exchange.route, exchange.status, exchange.total_s)
        quiet = exchange.route in _STATUS_ROUTES
        level = logging.DEBUG if quiet else logging.INFO
        left_out = (
            self._auth_failures.take_line_fields(time.monotonic()) if exchange.status == 401 else {}
        )
        if left_out is not None:
            logger.log(level, "request", extra={"fields": _build_log_fields(exchange) | left_out})
        if self._tracer is not None and not quiet:
            self._tracer.trace(exchange, scope["headers"])


def _wrap_receive(receive: Receive, exchange: Exchange) -> Receive:
    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            exchange.mark_client_disconnected()
        return message

    return watched


def _stage_times(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Whole milliseconds, under the names that text-embeddings-inference gave them."""
    record = exchange.context
    stages = {
        "x-tokenization-time": record.tokenize_s,
        "x-queue-time": record.queue_duration_s,
        "x-inference-time": record.inference_s,
        "x-total-time": exchange.elapsed_s,
    }
    return [
        (name.encode(), str(round(1000 * seconds)).encode()) for name, seconds in stages.items()
    ]


def _build_log_fields(exchange: Exchange) -> dict[str, Any]:
    """What the line says; the id stands in every line of the log anyway."""
    record = exchange.context
    facts: dict[str, Any] = {
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "code": record.code,
        "client": record.client,
    }
    if record.model is not None:
        facts |= {
            "model": record.model,
            "conversations": record.num_conversations,
            "errors": record.num_errors,
            "tokens": record.num_tokens,
            "computed": record.num_computed_tokens,
            "cached": record.num_cached_tokens,
            "tokenize_s": round(record.tokenize_s, 6),
            "queue_duration_s": round(record.queue_duration_s, 6),
            "inference_s": round(record.inference_s, 6),
        }
    facts["total_s"] = round(exchange.total_s, 6)
    return {name: fact for name, fact in facts.items() if fact is not None}
