"""The endpoints of a client, the choice of the endpoint for the next try, and when to retry.

Scoring has no side effects, so a request that is sent twice is at worst computed twice. Therefore
all transient failures are retried: an overloaded service, a service that is starting or being
replaced, and a gateway that crashed while it handled the request. An endpoint that failed gets a
cooldown: as long as its `Retry-After` header says, otherwise longer after each consecutive failure.
"""

from __future__ import annotations

import base64
import errno
import functools
import ipaddress
import logging
import random
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve.client.errors import ServiceError
from serve.client.responses import UnreadableAnswerError, excerpt, parse_json_object

logger = logging.getLogger("serve.client")

_RETRYABLE_STATUSES = (429, 502, 503, 504)
# Retried only if a proxy wrote the response. A proxy sends these statuses when the process behind
# it dies or is slow; the service sends them when the same request would fail again.
_RETRYABLE_PROXY_STATUSES = (408, 500)
_RETRYABLE_EXCEPTIONS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
# Not the global generator, which trainers seed: each process needs its own jitter.
_JITTER = random.SystemRandom()
_INITIAL_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_MIN_RETRY_AFTER_S = 0.1


@dataclass(eq=False, slots=True)
class Endpoint:
    """An address of a service and its state."""

    url: httpx.URL  # URL without user and password, so that no library logs them
    display_url: str  # the URL for errors, logs and files
    # Header with the user and password of the address, if there are any.
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    num_in_flight: int = 0  # number of requests in flight
    num_failures: int = 0  # number of consecutive failures
    failed_at: float = 0.0  # time of the last failure, on the monotonic clock
    # Time until which other endpoints are preferred, on the monotonic clock.
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
        message = get_error_field(failure, "message") or excerpt(failure)
        return f"{self.display_url} answered {failure.status_code}: {message}"


class EndpointPool:
    """All endpoints of a client; duplicates are ignored. Thread-safe.

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

        A request that was sent before the last failure, on the monotonic clock, does not count as a
        further failure.
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


def is_retryable(failure: httpx.Response | httpx.HTTPError) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(failure, httpx.HTTPError):
        return isinstance(failure, _RETRYABLE_EXCEPTIONS) or _is_peer_timeout(failure)
    if failure.status_code in _RETRYABLE_PROXY_STATUSES:  # final if the service itself sent them
        return not isinstance((parse_json_object(failure) or {}).get("error"), dict)
    return failure.status_code in _RETRYABLE_STATUSES


def _is_peer_timeout(failure: httpx.HTTPError) -> bool:
    """Return whether the operating system timed out the peer, which httpx reports as a timeout."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def get_error_field(failure: httpx.Response | httpx.HTTPError, name: str) -> str | None:
    """Return a text of the error that the service sent; None if it sent none."""
    if isinstance(failure, httpx.HTTPError):
        return None
    error = (parse_json_object(failure) or {}).get("error")
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else None


def backoff_seconds(failure: httpx.Response | httpx.HTTPError, num_failures: int) -> float:
    """Return the seconds to wait before the next request to an address that failed."""
    retry_after = _parse_retry_after(failure)
    if retry_after is not None:  # never sooner than requested, and not all clients at once
        return max(retry_after, _MIN_RETRY_AFTER_S) * _JITTER.uniform(1.0, 1.2)
    backoff: float = min(_MAX_BACKOFF_S, _INITIAL_BACKOFF_S * 2 ** min(num_failures, 16))
    return backoff * _JITTER.uniform(0.5, 1.0)


def _parse_retry_after(failure: httpx.Response | httpx.HTTPError) -> float | None:
    """Return the delay of the `Retry-After` header (a number or a date) in seconds."""
    if isinstance(failure, httpx.HTTPError) or not (value := failure.headers.get("Retry-After")):
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
