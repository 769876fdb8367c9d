"""When a request is sent again, and how long to wait before that.

Scoring is pure: a request that was sent twice is at worst computed twice. So everything is tried
again that may go away by itself: a service that refuses for now, one that is being started or
replaced, and a gateway that died with the request in its hands.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_FOR_A_WHILE = (429, 502, 503, 504)
# Only if it isn't our answer: a proxy writes these when the process behind it dies or is slow, we
# when a request fails in a way that it would fail in again.
_UNLESS_OURS = (408, 500)
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_SHORTEST_WAIT_S = 0.1


class Retries:
    """The tries of one request.

    Args:
        seconds: after the first failure, in which to try again; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self.tries = 1

    def wait(self, failure: httpx.Response | httpx.HTTPError) -> float | None:
        """Seconds to wait before the next try; None if there is to be none."""
        if not may_go_away(failure):
            return None
        now = time.monotonic()
        if self._deadline is None:
            # From here: the first try may have taken as long as its work does.
            self._deadline = now + self._seconds
        wait = _asked_for(failure)
        if wait is None:
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self.tries - 1))
            wait *= random.uniform(0.5, 1.0)
        else:  # never sooner than asked, and not all clients at once
            wait = max(wait, _SHORTEST_WAIT_S) * random.uniform(1.0, 1.2)
        if now + wait > self._deadline:
            return None
        self.tries += 1
        return wait


def may_go_away(failure: httpx.Response | httpx.HTTPError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(failure, httpx.HTTPError):
        return isinstance(failure, _LOST)
    if failure.status_code in _UNLESS_OURS:
        return not is_ours(failure)
    return failure.status_code in _FOR_A_WHILE


def is_ours(response: httpx.Response) -> bool:
    """Whether an error was written by the service itself rather than by a proxy before it."""
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)


def _asked_for(failure: httpx.Response | httpx.HTTPError) -> float | None:
    """What `Retry-After` says, in seconds; it may also be a date."""
    if isinstance(failure, httpx.HTTPError) or not (said := failure.headers.get("Retry-After")):
        return None
    if said.strip().isdecimal():
        return float(said)
    try:
        return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
