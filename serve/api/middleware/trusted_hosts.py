"""Host names that requests may use for the service.

A web page can make its own host name resolve to 127.0.0.1 (DNS rebinding); its scripts can then
read the responses of a service on the visitor's machine. Such a page cannot choose the header Host,
which contains the page's host name.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.error_responses import truncate_for_message
from serve.api.middleware.reject import send_rejection
from serve.config.settings import Settings
from serve.errors import MisdirectedRequestError

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class TrustedHostMiddleware:
    """Rejects requests for other hosts, and websockets, which no route supports."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, unless it is a websocket or for another host."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            state = scope["app"].state
            try:
                check_host(scope["headers"], state.settings, with_keys=bool(state.keys))
            except MisdirectedRequestError as error:
                await send_rejection(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_host(
    headers: Iterable[tuple[bytes, bytes]], settings: Settings, *, with_keys: bool
) -> None:
    """Reject a request whose Host header names another host.

    Args:
        headers: headers of the request. Without Host, the request is allowed: no browser sends it.
        settings: settings `host` and `allowed_hosts`.
        with_keys: whether the service requires an API key, which a foreign web page does not have.

    Raises:
        MisdirectedRequestError: the host is not allowed.
    """
    allowed = _get_allowed_hosts(settings.host, settings.allowed_hosts, with_keys)
    if allowed is None:
        return
    for name, value in headers:
        if name == b"host" and _strip_port(value.decode("latin-1")) not in allowed:
            raise MisdirectedRequestError(
                f"the request is for the host {truncate_for_message(value.decode('latin-1'))!r}, "
                f"and this service accepts requests for {', '.join(sorted(allowed))}; use one of "
                "these, or add your host to the service's setting `allowed_hosts`"
            )


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is a loopback address; names are not resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return _normalize_name(host) == "localhost"


@functools.lru_cache
def _get_allowed_hosts(host: str, more: tuple[str, ...], with_keys: bool) -> frozenset[str] | None:
    """Return the allowed host names; None if every host is allowed."""
    if "*" in more or (not more and (with_keys or not is_loopback(host))):
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(_normalize_name(name) for name in (*_LOCAL, own, *more))


def _strip_port(header: str) -> str:
    host, colon, port = header.strip().rpartition(":")
    return _normalize_name(host if colon and "]" not in port else header.strip())


def _normalize_name(name: str) -> str:
    # A trailing dot marks a fully qualified name, which is the same host.
    return name.lower().removesuffix(".")
