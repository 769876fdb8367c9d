"""Rules for retrying requests.

Scoring has no side effects, so a request that is sent twice is at worst computed twice. Therefore
all transient failures are retried: an overloaded service, a service that is starting or being
replaced, and a gateway that crashed while it handled the request.
"""

from __future__ import annotations

import errno
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve.client.bodies import parse_json_object

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


def is_retryable(failure: httpx.Response | httpx.HTTPError) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(failure, httpx.HTTPError):
        return isinstance(failure, _RETRYABLE_EXCEPTIONS) or _is_peer_timeout(failure)
    if failure.status_code in _RETRYABLE_PROXY_STATUSES:
        return not is_from_service(failure)
    return failure.status_code in _RETRYABLE_STATUSES


def _is_peer_timeout(failure: httpx.HTTPError) -> bool:
    """Return whether the operating system timed out the peer, which httpx reports as a timeout."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_from_service(response: httpx.Response) -> bool:
    """Return whether the service wrote an error response, not a proxy in front of the service."""
    return isinstance((parse_json_object(response) or {}).get("error"), dict)


def backoff_seconds(failure: httpx.Response | httpx.HTTPError, num_failures: int) -> float:
    """Return the seconds to wait before the next request to an address that failed.

    Args:
        failure: response or exception of the failed request.
        num_failures: number of consecutive failures before this one.
    """
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
