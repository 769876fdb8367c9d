"""The endpoints of a client, and the choice of the endpoint for the next try.

An endpoint that failed gets a cooldown: as long as its `Retry-After` header says, otherwise longer
after each consecutive failure. Safe for use from several threads.
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from serve.client.bodies import UnreadableAnswerError, excerpt, parse_json_object
from serve.client.errors import ServiceError
from serve.client.retries import backoff_seconds, is_from_service

logger = logging.getLogger("serve.client")


@dataclass(eq=False, slots=True)
class Endpoint:
    """An address of a service and its state.

    Attributes:
        url: URL without user and password, so that no library logs them.
        display_url: the URL for errors, logs and files.
        headers: header with the user and password of the address, if there are any.
        num_in_flight: number of requests in flight.
        num_failures: number of consecutive failures.
        failed_at: time of the last failure, on the monotonic clock.
        cooldown_until: time until which other endpoints are preferred, on the monotonic clock.
    """

    url: httpx.URL
    display_url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    num_in_flight: int = 0
    num_failures: int = 0
    failed_at: float = 0.0
    cooldown_until: float = 0.0

    def describe_failure(self, failure: httpx.Response | httpx.HTTPError) -> str:
        """Return a message about a failed request."""
        if isinstance(failure, UnreadableAnswerError):
            return f"{self.display_url} sent a response that was not read: {failure}"
        if isinstance(failure, httpx.HTTPError):
            return (
                f"{self.display_url} did not answer: {type(failure).__name__}: {failure}; is the "
                "service running there?"
            )
        message = (
            (parse_json_object(failure) or {})["error"].get("message")
            if is_from_service(failure)
            else None
        )
        return f"{self.display_url} answered {failure.status_code}: {message or excerpt(failure)}"


class EndpointPool:
    """All endpoints of a client.

    Args:
        urls: at least one URL; duplicates are ignored.

    Raises:
        ServiceError: `urls` is empty, or one URL is not a valid address.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise ServiceError("no address was given; give one such as http://127.0.0.1:8000")
        self._endpoints = [_parse_url(url) for url in dict.fromkeys(urls)]
        self._lock = threading.Lock()

    @property
    def display_urls(self) -> list[str]:
        """The URLs of the endpoints, without user and password."""
        return [endpoint.display_url for endpoint in self._endpoints]

    @property
    def hosts(self) -> set[str]:
        """The hosts of the endpoints, without ports."""
        return {endpoint.url.host for endpoint in self._endpoints}

    def __len__(self) -> int:
        return len(self._endpoints)

    def acquire(self) -> Endpoint:
        """Return the endpoint for the next request: outside cooldown, fewest requests in flight."""
        with self._lock:
            now = time.monotonic()
            available = [e for e in self._endpoints if e.cooldown_until <= now]
            if available:
                endpoint = min(available, key=lambda e: e.num_in_flight)
                # Move it to the end, so that endpoints with equal load take turns.
                self._endpoints.remove(endpoint)
                self._endpoints.append(endpoint)
            else:
                endpoint = min(self._endpoints, key=lambda e: e.cooldown_until)
            endpoint.num_in_flight += 1
            return endpoint

    def release(self, endpoint: Endpoint) -> None:
        """Record that a request to the endpoint ended, successful or not."""
        with self._lock:
            endpoint.num_in_flight -= 1

    def mark_healthy(self, endpoint: Endpoint) -> None:
        """Record a successful response and end the cooldown."""
        with self._lock:
            endpoint.num_failures = 0
            endpoint.cooldown_until = 0.0

    def mark_failed(
        self, endpoint: Endpoint, failure: httpx.Response | httpx.HTTPError, sent_at: float
    ) -> None:
        """Record a retryable failure and start a cooldown.

        Args:
            endpoint: endpoint that failed.
            failure: response or exception of the request.
            sent_at: time at which the request was sent, on the monotonic clock. A request that
                was in flight at the last failure does not count as a further failure.
        """
        with self._lock:
            now = time.monotonic()
            num_failures = endpoint.num_failures
            if num_failures and sent_at < endpoint.failed_at:
                num_failures -= 1
            else:
                endpoint.num_failures += 1
                endpoint.failed_at = now
            cooldown_until = now + backoff_seconds(failure, num_failures)
            endpoint.cooldown_until = max(endpoint.cooldown_until, cooldown_until)

    def compute_wait(self) -> float:
        """Return the seconds until the first endpoint is outside its cooldown."""
        with self._lock:
            return max(0.0, min(e.cooldown_until for e in self._endpoints) - time.monotonic())


def _parse_url(url: str) -> Endpoint:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ServiceError(
            f"{_strip_secrets(url)!r} is not a valid address ({error}); give one such as "
            "http://127.0.0.1:8000"
        ) from None
    is_port_valid = parsed.port is None or 0 < parsed.port < 65536
    if parsed.scheme not in ("http", "https") or not parsed.host or not is_port_valid:
        raise ServiceError(
            f"{_strip_secrets(url)!r} is not a valid address; give one such as "
            "http://127.0.0.1:8000"
        )
    headers = {}
    if parsed.userinfo:
        credentials = f"{parsed.username}:{parsed.password}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    path = parsed.raw_path.partition(b"?")[0]
    base_url = parsed.copy_with(
        username=None,
        password=None,
        raw_path=path if path.endswith(b"/") else path + b"/",
        fragment=None,
    )
    display_url = str(base_url).rstrip("/")
    if parsed.query or parsed.fragment:
        _warn_about_query(display_url)
    return Endpoint(base_url, display_url, headers)


@functools.cache
def _warn_about_query(url: str) -> None:
    logger.warning("the query or fragment of the address %s is not sent; leave it out", url)


def _strip_secrets(url: object) -> str:
    """Return what may be displayed of an invalid address, without a possible password."""
    text = re.split(r"[?#]", str(url), maxsplit=1)[0]
    before, at, after = text.rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return scheme + after if at else text


def get_display_url(url: str) -> str:
    """Return an address without user, password and query, for display and for files.

    Raises:
        ServiceError: `url` is not a valid address.
    """
    return _parse_url(url).display_url


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback or unspecified address, in any notation."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # `inet_aton` accepts the system's short notations, such as 127.1 or 2130706433.
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        address = ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        try:
            ipv6_address = ipaddress.IPv6Address(host)
        except ValueError:
            return False
        address = ipv6_address.ipv4_mapped or ipv6_address
    return address.is_loopback or address.is_unspecified
