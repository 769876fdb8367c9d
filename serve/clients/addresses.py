"""The addresses of a service, and which of them gets the next try.

One that failed rests: as long as its `Retry-After` says, else longer each time. Safe to be used
from several threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from serve.clients.errors import ServiceError
from serve.clients.retries import is_ours, wait_after

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(eq=False, slots=True)
class Address:
    """One of them.

    Attributes:
        url: where it is.
        place: the same for errors and logs: a password in it must not be told.
        num_running: requests there now.
        num_failures: one after another.
        failed_at: when it failed last, on the monotonic clock.
        rests_until: before that, others are tried.
    """

    url: httpx.URL
    place: str
    num_running: int = 0
    num_failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0

    def told(self, failure: httpx.Response | httpx.HTTPError) -> str:
        """What happened, in words."""
        if isinstance(failure, httpx.HTTPError):
            return (
                f"{self.place} did not answer: {type(failure).__name__}: {failure}; is the "
                "service running there?"
            )
        said = failure.json()["error"].get("message") if is_ours(failure) else None
        return f"{self.place} answered {failure.status_code}: {said or failure.text[:200]}"


class Addresses:
    """All of them.

    Args:
        urls: at least one; given twice counts once.

    Raises:
        ServiceError: there is none, or one is no address.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise ServiceError("no address was given; give one such as http://127.0.0.1:8000")
        self._addresses = [_parsed(url) for url in dict.fromkeys(urls)]
        self._lock = threading.Lock()

    @property
    def places(self) -> list[str]:
        """Where they are, without passwords."""
        return [address.place for address in self._addresses]

    def __len__(self) -> int:
        return len(self._addresses)

    def begin(self) -> Address:
        """The one to send a request to: with the fewest running, of those that do not rest."""
        with self._lock:
            now = time.monotonic()
            awake = [a for a in self._addresses if a.rests_until <= now]
            if awake:
                chosen = min(awake, key=lambda a: a.num_running)
                # The next one starts behind it, so that equal ones take turns.
                self._addresses.remove(chosen)
                self._addresses.append(chosen)
            else:
                chosen = min(self._addresses, key=lambda a: a.rests_until)
            chosen.num_running += 1
            return chosen

    def end(self, address: Address) -> None:
        """A request there is over, whatever came of it."""
        with self._lock:
            address.num_running -= 1

    def worked(self, address: Address) -> None:
        """It answered."""
        with self._lock:
            address.num_failures = 0
            address.rests_until = 0.0

    def failed(
        self, address: Address, failure: httpx.Response | httpx.HTTPError, sent_at: float
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
            before = address.num_failures
            if before and sent_at < address.failed_at:
                before -= 1
            else:
                address.num_failures += 1
                address.failed_at = now
            rests_until = now + wait_after(failure, before)
            address.rests_until = max(address.rests_until, rests_until)

    def wait(self) -> float:
        """Seconds until one of them does not rest."""
        with self._lock:
            return max(0.0, min(a.rests_until for a in self._addresses) - time.monotonic())


def _parsed(url: str) -> Address:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ServiceError(
            f"{url!r} is no address ({error}); give one such as http://127.0.0.1:8000"
        ) from error
    if address.scheme not in ("http", "https") or not address.host:
        shown = str(address.copy_with(username=None, password=None)) if address.host else url
        raise ServiceError(f"{shown!r} is no address; give one such as http://127.0.0.1:8000")
    if not address.raw_path.endswith(b"/"):
        address = address.copy_with(raw_path=address.raw_path + b"/")
    place = str(address.copy_with(username=None, password=None)).rstrip("/")
    return Address(address, place)
