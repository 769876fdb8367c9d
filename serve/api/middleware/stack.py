"""The middleware of the service, in its order: the same on Ray Serve and in one process.

All of it is pure ASGI. Layers that need the current settings or keys read them for each request,
from `app.state.settings` and `app.state.keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serve.api.middleware.access import ApiKeyMiddleware, TrustedHostMiddleware
from serve.api.middleware.connections import ResponseTimeoutMiddleware
from serve.api.middleware.request_limits import Admission, RequestLimitsMiddleware
from serve.api.middleware.request_log import InFlightRequests, RequestLogMiddleware
from serve.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serve.api.middleware.tracing import OtlpTracer


def install(
    app: FastAPI,
    metrics: Metrics,
    *,
    check_capacity: Callable[[str], None] = lambda _: None,
    echo_request_id: bool = True,
    route_templates: Iterable[str] = (),
    tracer: OtlpTracer | None = None,
) -> None:
    """Add the middleware to an application, and what it counts to the state of the application.

    Sets `app.state.in_flight` and `app.state.admission`. See `RequestLogMiddleware` and
    `RequestLimitsMiddleware`.
    """
    state, cors_origins = app.state, app.state.settings.cors_origins
    state.in_flight = InFlightRequests()
    state.admission = Admission(state)
    metrics.watch_in_flight(lambda: state.in_flight.number)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    app.user_middleware.extend(
        [
            # The outermost layer also sees what the others reject.
            Middleware(
                RequestLogMiddleware,
                metrics=metrics,
                in_flight=state.in_flight,
                echo_request_id=echo_request_id,
                route_templates=route_templates,
                tracer=tracer,
            ),
            Middleware(ResponseTimeoutMiddleware),
            Middleware(TrustedHostMiddleware),
            *([cors] if cors_origins else []),
            Middleware(ApiKeyMiddleware),
            Middleware(
                RequestLimitsMiddleware, admission=state.admission, check_capacity=check_capacity
            ),
        ]
    )
