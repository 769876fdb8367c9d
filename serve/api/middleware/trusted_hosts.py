"""The names by which a service may be asked for.

A web page may have its own name resolved to 127.0.0.1 (DNS rebinding), and then its scripts may
read what a service on the visitor's machine answers. What such a page cannot choose is the header
Host, which has its name.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from serve.api.error_responses import truncate_for_message
from serve.config.settings import Settings
from serve.errors import MisdirectedRequestError

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def check_host(
    headers: Iterable[tuple[bytes, bytes]], settings: Settings, *, with_keys: bool
) -> None:
    """Refuse a request for a host that is not this one.

    Args:
        headers: of the request. One without Host is let through: no browser sends it.
        settings: `host` and `allowed_hosts`.
        with_keys: whether requests must bring a key, which no page of others has.

    Raises:
        MisdirectedRequestError: the host is another.
    """
    allowed = _get_allowed_hosts(settings.host, settings.allowed_hosts, with_keys)
    if allowed is None:
        return
    for name, value in headers:
        if name == b"host" and _strip_port(value.decode("latin-1")) not in allowed:
            raise MisdirectedRequestError(
                f"the request is for the host {truncate_for_message(value.decode('latin-1'))!r}, and this "
                f"service is asked for as {', '.join(sorted(allowed))}; use one of these, or add "
                "yours to the service's setting `allowed_hosts`"
            )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is of this machine alone; names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return _normalize_name(host) == "localhost"


@functools.lru_cache
def _get_allowed_hosts(host: str, more: tuple[str, ...], with_keys: bool) -> frozenset[str] | None:
    """None where every host is."""
    if "*" in more or (not more and (with_keys or not is_loopback(host))):
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(_normalize_name(name) for name in (*_LOCAL, own, *more))


def _strip_port(header: str) -> str:
    host, colon, port = header.strip().rpartition(":")
    return _normalize_name(host if colon and "]" not in port else header.strip())


def _normalize_name(name: str) -> str:
    # With the dot at its end a name is complete, and the same.
    return name.lower().removesuffix(".")
