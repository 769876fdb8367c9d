"""Hides request headers from Ray Serve's proxy.

Serve would act on these headers itself: it responds to a passed deadline with plain text, at the
moment at which the gateway would respond; a header makes it stop detecting disconnected clients;
and header values that are not UTF-8 end in a 500. `middlewares` runs in the process of Serve that
handles HTTP (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH). The gateway reads the deadline under
either name. This module does not import rm_core: a proxy needs no torch.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve.api.middleware.connections import TRANSPORT_KEY, BoundedConnection
from serve.telemetry.logging import accept_request_id

_ID = b"x-request-id"
TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
HIDDEN_TIMEOUT_HEADER = "X-Skyreward-Timeout-Seconds"
_DEADLINE, _HIDDEN_DEADLINE = (
    name.lower().encode() for name in (TIMEOUT_HEADER, HIDDEN_TIMEOUT_HEADER)
)
_STRIPPED_HEADERS = frozenset(
    {_ID, b"x-request-disconnect-disabled", b"serve-multiplexed-model-id"}
)


def middlewares() -> list[Middleware]:
    """Return the middleware of Serve's proxy; Serve calls this function before it listens.

    Serve has no option for uvicorn's HTTP protocol and uses uvicorn's default, so this function
    replaces the default by `BoundedConnection`, which has the connection limits. In this process,
    only Serve uses uvicorn.
    """
    HTTP_PROTOCOLS["auto"] = f"{BoundedConnection.__module__}:{BoundedConnection.__qualname__}"
    return [Middleware(StripHeadersMiddleware)]


class StripHeadersMiddleware:
    """In the proxy: makes the request id safe to echo, and hides other headers from Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(_ID)
            identifier = accept_request_id(header.decode("latin-1") if header else None)
            headers = [
                (_HIDDEN_DEADLINE if name == _DEADLINE else name, value)
                for name, value in scope["headers"]
                if name.replace(b"_", b"-") not in _STRIPPED_HEADERS
            ]
            scope = {**scope, "headers": [*headers, (_ID, identifier.encode())]}
            scope.pop(TRANSPORT_KEY, None)  # Serve sends the scope to another process
        await self._app(scope, receive, send)
