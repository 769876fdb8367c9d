"""Who may put models to sleep, wake them and reload them: requests of the lifecycle routes.

A client needs a key of `admin_api_keys`. Without such keys, only clients on this machine may do it:
the connection comes from a loopback address, and not through another proxy. A web page that is open
in a browser on this machine is not such a client. Its requests carry the header Origin, and where
its host name was made to resolve to 127.0.0.1 (DNS rebinding), a Host that is not a local name.

These requests do not count as scoring requests: they have no deadline, since reading the weights of
a large model takes minutes.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from starlette.datastructures import Headers
from starlette.types import Scope

from serve.api.middleware.access import (
    LOCAL_NAMES,
    authenticate,
    get_sent_key,
    is_loopback,
    strip_port,
)
from serve.errors import AuthenticationError, PermissionDeniedError
from serve.telemetry.logging import ANONYMOUS

AdminWithoutKey: TypeAlias = Literal["loopback", "all", "none"]
"""Who may use the lifecycle routes without a key: clients whose connection comes from a loopback
address; everyone who reaches the service, since it listens on a loopback address; or no one."""

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def authorize(scope: Scope) -> str:
    """Return the client's name if it may use the lifecycle routes.

    Raises:
        AuthenticationError: the request has no key, or an unknown one.
        PermissionDeniedError: the client may score, but not control models.
    """
    state = scope["app"].state
    if "authorization" in Headers(scope=scope) and (
        name := state.admin_keys.find_name(get_sent_key(scope))
    ):
        return str(name)
    client = authenticate(scope, state.keys) if state.keys else ANONYMOUS
    if state.admin_without_key == "none":
        if client == ANONYMOUS:
            raise AuthenticationError(
                "this route needs a key of the service's setting `admin_api_keys`; send "
                "Authorization: Bearer KEY"
            )
        raise PermissionDeniedError(
            "this key may score, but not control models; send a key of the service's setting "
            "`admin_api_keys`"
        )
    if reason := _find_foreign_sign(scope, state.admin_without_key):
        raise PermissionDeniedError(
            f"{reason}, and without `admin_api_keys` only clients on the service's machine may "
            "control models; set `admin_api_keys`, and send one of these keys"
        )
    return client


def _find_foreign_sign(scope: Scope, allowed: AdminWithoutKey) -> str | None:
    """Return a reason why the client may not be on this machine; None if it is."""
    headers = Headers(scope=scope)
    peer = scope["client"][0] if scope.get("client") else ""
    if allowed == "loopback" and not is_loopback(peer):
        return "the request comes from another machine"
    if header := next((name for name in _FORWARDED if name in headers), None):
        return f"the request came through a proxy (header {header})"
    host = headers.get("host", "")
    if strip_port(host) not in LOCAL_NAMES:
        return "the header Host is not localhost, 127.0.0.1 or [::1]"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return "the request comes from a web page of another site"
    return None
