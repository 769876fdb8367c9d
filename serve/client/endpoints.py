"""The addresses of a service, and which of them gets the next try.

One that failed rests: as long as its `Retry-After` says, else longer each time. Safe to be used
from several threads.
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
    """One of them.

    Attributes:
        url: where it is, without user and password, which no log of a library may show.
        place: the same for errors, logs and files.
        headers: the user and password of the address, as they are sent.
        num_running: requests there now.
        num_failures: one after another.
        failed_at: when it failed last, on the monotonic clock.
        rests_until: before that, others are tried.
    """

    url: httpx.URL
    display_url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    num_in_flight: int = 0
    num_failures: int = 0
    failed_at: float = 0.0
    cooldown_until: float = 0.0

    def describe_failure(self, failure: httpx.Response | httpx.HTTPError) -> str:
        """What happened, in words."""
        if isinstance(failure, UnreadableAnswerError):
            return f"{self.display_url} sent an answer that is not read: {failure}"
        if isinstance(failure, httpx.HTTPError):
            return (
                f"{self.display_url} did not answer: {type(failure).__name__}: {failure}; is the "
                "service running there?"
            )
        said = (
            (parse_json_object(failure) or {})["error"].get("message")
            if is_from_service(failure)
            else None
        )
        return f"{self.display_url} answered {failure.status_code}: {said or excerpt(failure)}"


class EndpointPool:
    """All of them.

    Args:
        urls: at least one; given twice counts once.

    Raises:
        ServiceError: there is none, or one is no address.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise ServiceError("no address was given; give one such as http://127.0.0.1:8000")
        self._endpoints = [_parse_url(url) for url in dict.fromkeys(urls)]
        self._lock = threading.Lock()

    @property
    def display_urls(self) -> list[str]:
        """Where they are, without passwords."""
        return [address.display_url for address in self._endpoints]

    @property
    def hosts(self) -> set[str]:
        """Where they are, without ports."""
        return {address.url.host for address in self._endpoints}

    def __len__(self) -> int:
        return len(self._endpoints)

    def acquire(self) -> Endpoint:
        """The one to send a request to: with the fewest running, of those that do not rest."""
        with self._lock:
            now = time.monotonic()
            awake = [a for a in self._endpoints if a.cooldown_until <= now]
            if awake:
                chosen = min(awake, key=lambda a: a.num_in_flight)
                # The next one starts behind it, so that equal ones take turns.
                self._endpoints.remove(chosen)
                self._endpoints.append(chosen)
            else:
                chosen = min(self._endpoints, key=lambda a: a.cooldown_until)
            chosen.num_in_flight += 1
            return chosen

    def release(self, endpoint: Endpoint) -> None:
        """A request there is over, whatever came of it."""
        with self._lock:
            endpoint.num_in_flight -= 1

    def mark_healthy(self, endpoint: Endpoint) -> None:
        """It answered."""
        with self._lock:
            endpoint.num_failures = 0
            endpoint.cooldown_until = 0.0

    def mark_failed(
        self, endpoint: Endpoint, failure: httpx.Response | httpx.HTTPError, sent_at: float
    ) -> None:
        """It did not, or refused for a while; it rests now.

        Args:
            address: which.
            failure: what came.
            sent_at: when the request was sent: what was under way at the last failure tells
                nothing new.
        """
        with self._lock:
            now = time.monotonic()
            before = endpoint.num_failures
            if before and sent_at < endpoint.failed_at:
                before -= 1
            else:
                endpoint.num_failures += 1
                endpoint.failed_at = now
            rests_until = now + backoff_seconds(failure, before)
            endpoint.cooldown_until = max(endpoint.cooldown_until, rests_until)

    def compute_wait(self) -> float:
        """Seconds until one of them does not rest."""
        with self._lock:
            return max(0.0, min(a.cooldown_until for a in self._endpoints) - time.monotonic())


def _parse_url(url: str) -> Endpoint:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ServiceError(
            f"{_strip_secrets(url)!r} is no address ({error}); give one such as "
            "http://127.0.0.1:8000"
        ) from None
    is_port = address.port is None or 0 < address.port < 65536
    if address.scheme not in ("http", "https") or not address.host or not is_port:
        raise ServiceError(
            f"{_strip_secrets(url)!r} is no address; give one such as http://127.0.0.1:8000"
        )
    headers = {}
    if address.userinfo:
        pair = f"{address.username}:{address.password}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    path = address.raw_path.partition(b"?")[0]
    place = address.copy_with(
        username=None,
        password=None,
        raw_path=path if path.endswith(b"/") else path + b"/",
        fragment=None,
    )
    shown = str(place).rstrip("/")
    if address.query or address.fragment:
        _warn_about_query(shown)
    return Endpoint(place, shown, headers)


@functools.cache
def _warn_about_query(url: str) -> None:
    logger.warning("what follows ? or # in the address %s is not sent; leave it out", url)


def _strip_secrets(url: object) -> str:
    """What can be shown of a text that is no address: not what may be a password in it."""
    text = re.split(r"[?#]", str(url), maxsplit=1)[0]
    before, at, after = text.rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return scheme + after if at else text


def get_display_url(url: str) -> str:
    """An address without user, password and query: what may be shown and kept.

    Raises:
        ServiceError: it is no address.
    """
    return _parse_url(url).display_url


def is_loopback(host: str) -> bool:
    """Whether a host of an address is this machine itself, in any way of writing it."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # As the system reads 127.1 or 2130706433.
        found: ipaddress.IPv4Address | ipaddress.IPv6Address
        found = ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        try:
            six = ipaddress.IPv6Address(host)
        except ValueError:
            return False
        found = six.ipv4_mapped or six
    return found.is_loopback or found.is_unspecified
