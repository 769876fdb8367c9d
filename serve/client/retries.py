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

from serve.client.bodies import parse_json_object

_RETRYABLE_STATUSES = (429, 502, 503, 504)
# Only if it isn't our answer: a proxy writes these when the process behind it dies or is slow, we
# when a request fails in a way that it would fail in again.
_RETRYABLE_PROXY_STATUSES = (408, 500)
_RETRYABLE_EXCEPTIONS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
# Not the global generator: a trainer's seed decides that, and every process waits its own time.
_JITTER = random.SystemRandom()
_INITIAL_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_MIN_RETRY_AFTER_S = 0.1


def is_retryable(failure: httpx.Response | httpx.HTTPError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(failure, httpx.HTTPError):
        return isinstance(failure, _RETRYABLE_EXCEPTIONS) or _is_peer_timeout(failure)
    if failure.status_code in _RETRYABLE_PROXY_STATUSES:
        return not is_from_service(failure)
    return failure.status_code in _RETRYABLE_STATUSES


def _is_peer_timeout(failure: httpx.HTTPError) -> bool:
    """Whether the system found the other side gone; to httpx that is a timeout like our own."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_from_service(response: httpx.Response) -> bool:
    """Whether an error was written by the service itself rather than by a proxy before it."""
    return isinstance((parse_json_object(response) or {}).get("error"), dict)


def backoff_seconds(failure: httpx.Response | httpx.HTTPError, num_failures: int) -> float:
    """Seconds to leave an address alone that has failed.

    Args:
        failure: what came.
        num_before: how often it failed before, one time after another.
    """
    asked = _parse_retry_after(failure)
    if asked is not None:  # never sooner than asked, and not all clients at once
        return max(asked, _MIN_RETRY_AFTER_S) * _JITTER.uniform(1.0, 1.2)
    wait: float = min(_MAX_BACKOFF_S, _INITIAL_BACKOFF_S * 2 ** min(num_failures, 16))
    return wait * _JITTER.uniform(0.5, 1.0)


def _parse_retry_after(failure: httpx.Response | httpx.HTTPError) -> float | None:
    """What `Retry-After` says, in seconds; it may also be a date."""
    if isinstance(failure, httpx.HTTPError) or not (said := failure.headers.get("Retry-After")):
        return None
    if said.strip().isdecimal():
        return float(said)
    try:
        return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
