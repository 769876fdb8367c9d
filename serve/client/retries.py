"""When a request is sent again.

Scoring is pure: a request that was sent twice is at worst computed twice. So everything is tried
again that may go away by itself: a service that refuses for now, one that is being started or
replaced, and a gateway that died with the request in its hands.
"""

from __future__ import annotations

import errno
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve.client.bodies import json_of

_FOR_A_WHILE = (429, 502, 503, 504)
# Only if it isn't our answer: a proxy writes these when the process behind it dies or is slow, we
# when a request fails in a way that it would fail in again.
_UNLESS_OURS = (408, 500)
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
# Not the global generator: a trainer's seed decides that, and every process waits its own time.
_JITTER = random.SystemRandom()
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_SHORTEST_WAIT_S = 0.1


def may_go_away(failure: httpx.Response | httpx.HTTPError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(failure, httpx.HTTPError):
        return isinstance(failure, _LOST) or _was_cut_off(failure)
    if failure.status_code in _UNLESS_OURS:
        return not is_ours(failure)
    return failure.status_code in _FOR_A_WHILE


def _was_cut_off(failure: httpx.HTTPError) -> bool:
    """Whether the system found the other side gone; to httpx that is a timeout like our own."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_ours(response: httpx.Response) -> bool:
    """Whether an error was written by the service itself rather than by a proxy before it."""
    return isinstance((json_of(response) or {}).get("error"), dict)


def wait_after(failure: httpx.Response | httpx.HTTPError, num_before: int) -> float:
    """Seconds to leave an address alone that has failed.

    Args:
        failure: what came.
        num_before: how often it failed before, one time after another.
    """
    asked = _asked_for(failure)
    if asked is not None:  # never sooner than asked, and not all clients at once
        return max(asked, _SHORTEST_WAIT_S) * _JITTER.uniform(1.0, 1.2)
    wait: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(num_before, 16))
    return wait * _JITTER.uniform(0.5, 1.0)


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
