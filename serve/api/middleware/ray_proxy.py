"""Before Serve sees a request, and behind it: what Serve must not act on by itself.

Serve answers a deadline that passes with plain text, and at the moment at which the gateway would
have answered; it stops looking whether the client is still there if a header says so; and header
values that are no UTF-8 end in 500. `middlewares` runs in whatever process of Serve speaks HTTP
(RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), `RestoreHeadersMiddleware` in the gateway. No rm_core here: a proxy
needs no torch.
"""

from __future__ import annotations

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve.api.middleware.connections import BoundedConnection
from serve.telemetry.logging import accept_request_id

_ID = b"x-request-id"
_DEADLINE = b"x-request-timeout-seconds"
_HIDDEN_DEADLINE = b"x-skyreward-timeout-seconds"
_STRIPPED_HEADERS = frozenset(
    {_ID, b"x-request-disconnect-disabled", b"serve-multiplexed-model-id"}
)


def middlewares() -> list[Middleware]:
    """Called by Serve before it listens.

    Serve leaves uvicorn's choice of a protocol to uvicorn, and offers no option for it, so the
    limits on connections become that choice: in this process only Serve uses uvicorn.
    """
    HTTP_PROTOCOLS["auto"] = f"{BoundedConnection.__module__}:{BoundedConnection.__qualname__}"
    return [Middleware(StripHeadersMiddleware)]


class StripHeadersMiddleware:
    """Outside of Serve: the request's id made fit to be echoed, other headers out of its sight."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `middlewares`."""
        if scope["type"] == "http":
            sent = dict(scope["headers"]).get(_ID)
            identifier = accept_request_id(sent.decode("latin-1") if sent else None)
            headers = [
                (_HIDDEN_DEADLINE if name == _DEADLINE else name, value)
                for name, value in scope["headers"]
                if name.replace(b"_", b"-") not in _STRIPPED_HEADERS
            ]
            scope = {**scope, "headers": [*headers, (_ID, identifier.encode())]}
        await self._app(scope, receive, send)


class RestoreHeadersMiddleware:
    """In the gateway: the headers again as the client sent them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] == "http":
            # In place: what is noted in the scope further in has to be there further out.
            scope["headers"] = [
                (_DEADLINE if name == _HIDDEN_DEADLINE else name, value)
                for name, value in scope["headers"]
            ]
        await self._app(scope, receive, send)


class InFlightMiddleware:
    """In the gateway: knows when every answer is out of the application's hands.

    Args:
        app: the application.
        idle: set while no request is being answered.
    """

    def __init__(self, app: ASGIApp, idle: asyncio.Event) -> None:
        self._app = app
        self._idle = idle
        self._number = 0
        idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._number += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._number -= 1
            if not self._number:
                self._idle.set()
