"""The middleware stack: hosts, API keys, sizes, concurrency, deadlines, disconnected clients.

Pure ASGI, used both on Ray Serve and in single-process mode. A request is rejected as early as
possible: by its headers before its body is read, and before any of the body is parsed.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rm_core import RewardError
from serve.api.error_responses import build_error_response
from serve.api.middleware.admission import Admission
from serve.api.middleware.api_keys import KeyRing
from serve.api.middleware.body import check_headers, read_body
from serve.api.middleware.deadline import (
    TIMEOUT_HEADER,
    ClientDisconnectedError,
    Deadline,
    run_with_deadline,
)
from serve.api.middleware.reject import can_keep_alive, send_rejection
from serve.api.middleware.response_timeout import TransportMiddleware, enforce_send_timeout
from serve.api.middleware.trusted_hosts import check_host
from serve.api.playground.page import build_login_page, build_page_headers
from serve.config.settings import Settings
from serve.errors import AuthenticationError, BodyTimeoutError, MisdirectedRequestError
from serve.telemetry.context import ANONYMOUS, current_request

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Paths that need no API key: load balancers and Prometheus, which read them, have none."""

_CLIENT = "skyreward.client"


def install(
    app: FastAPI, settings: Settings, check_capacity: Callable[[str], None] = lambda _: None
) -> Admission:
    """Add the middleware to an application; middleware added later is outside of the stack.

    The middleware reads limits and keys for each request, from `app.state.settings` and
    `app.state.keys`.

    Args:
        app: the application.
        settings: settings at the start.
        check_capacity: raises `OverloadedError` while no scoring request can be accepted.

    Returns:
        The admission control of the application.
    """
    admission = Admission(lambda: app.state.settings)
    app.add_middleware(RequestLimitsMiddleware, admission=admission, check_capacity=check_capacity)
    app.add_middleware(ApiKeyMiddleware)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(HostAndTimeoutMiddleware)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: TransportMiddleware(build())  # type: ignore[method-assign]
    return admission


class HostAndTimeoutMiddleware:
    """Checks the Host header, resets connections of stalled readers, and rejects websockets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, unless it is a websocket or for another host."""
        if scope["type"] == "websocket":  # no route supports websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        send = enforce_send_timeout(scope, send, state.settings.answer_timeout_s)
        try:
            check_host(scope["headers"], state.settings, with_keys=bool(state.keys))
        except MisdirectedRequestError as error:
            close = not can_keep_alive(Headers(scope=scope), state.settings.max_body_bytes)
            await send_rejection(error, scope, receive, send, close=close)
            return
        await self._app(scope, receive, send)


class ApiKeyMiddleware:
    """Requires an API key when keys are configured; browsers get a login page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, unless its API key is missing or wrong."""
        if scope["type"] == "http" and scope["app"].state.keys and not _is_open(scope):
            try:
                scope[_CLIENT] = current_request().client = _authenticate(
                    scope, scope["app"].state.keys
                )
            except AuthenticationError as error:
                limit = scope["app"].state.settings.max_body_bytes
                close = not can_keep_alive(Headers(scope=scope), limit)
                page = _build_login_response(error, scope) if _asks_for_page(scope) else None
                await send_rejection(error, scope, receive, send, close=close, page=page)
                return
        await self._app(scope, receive, send)


class RequestLimitsMiddleware:
    """Applies admission control, body limits and the deadline to requests with method POST."""

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
        headers, settings = Headers(scope=scope), scope["app"].state.settings
        client = scope.get(_CLIENT, ANONYMOUS)
        is_read = False
        with self._admission.create_slot(client) as slot:
            try:
                deadline = Deadline.from_header(
                    headers.get(TIMEOUT_HEADER),
                    settings.request_timeout_s,
                    settings.max_request_timeout_s,
                )
                check_headers(headers, settings.max_body_bytes)
                slot.start_receiving()
                # Before reading the body: under overload, rejecting a request must be cheap.
                self._check_capacity(client)
                body = await read_body(receive, slot.add_body_bytes, settings, deadline)
                is_read = True
                slot.start_running()  # only now: a slow body must not use the slot of a request
                streams = (receive, send)
                await run_with_deadline(
                    self._app, scope, body, streams, deadline, slot.add_response_bytes
                )
            except ClientDisconnectedError:
                current_request().code = "client_gone"
            except RewardError as error:
                slot.release()
                is_stalled = isinstance(error, BodyTimeoutError)
                keep_alive = is_read or (
                    not is_stalled and can_keep_alive(headers, settings.max_body_bytes)
                )
                await send_rejection(error, scope, receive, send, close=not keep_alive)


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in OPEN_PATHS and scope["method"] in ("GET", "HEAD")


def _asks_for_page(scope: Scope) -> bool:
    """Return whether a browser, or the login page, requests the playground."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    wants_html = "text/html" in Headers(scope=scope).get("accept", "")
    return path == "/" and scope["method"] == "GET" and wants_html


def _build_login_response(error: RewardError, scope: Scope) -> Response:
    json_response = build_error_response(error, scope)
    headers = {
        "WWW-Authenticate": json_response.headers["WWW-Authenticate"],
        **build_page_headers(),
    }
    return Response(build_login_page(), json_response.status_code, headers)


def _authenticate(scope: Scope, keys: KeyRing) -> str:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise AuthenticationError("the API key is missing; send Authorization: Bearer KEY")
    scheme, _, key = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer":
        raise AuthenticationError("send the API key as one header Authorization: Bearer KEY")
    name = keys.find_name(key.strip())
    if name is None:
        raise AuthenticationError("the API key is wrong; ask the operator for one")
    return name
