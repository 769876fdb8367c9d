"""One request in as many tries as it takes, without doing any of it: what to send, when to wait.

A generator asks for what it needs, and whoever runs it, waiting on a thread or in an event loop,
sends back what came. So both clients decide everything in the same lines.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx

from serve.client.bodies import excerpt, parse_json_object
from serve.client.endpoints import EndpointPool
from serve.client.errors import ServiceError
from serve.client.retries import is_retryable
from serve.escaping import escape_line

logger = logging.getLogger("serve.client")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """Send a request now, and give back the answer or what went wrong with the connection."""

    method: str
    url: httpx.URL
    headers: dict[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Steps: TypeAlias = Generator[OutgoingRequest | Pause, httpx.Response | httpx.HTTPError | None, T]


@dataclass(frozen=True, slots=True)
class Sender:
    """Where requests of a client go.

    Attributes:
        addresses: of the service.
        retry_s: seconds after a request's first failure in which it is tried again.
        on_retry: called each time that something is sent again.
    """

    endpoints: EndpointPool
    retry_s: float
    on_retry: Callable[[], None]

    def request(
        self, method: str, route: str, content: bytes | None = None
    ) -> Steps[dict[str, Any]]:
        """The JSON object that is answered in the end.

        Raises:
            ServiceError: the request failed.
        """
        response, place = yield from self._send(method, route, content)
        answer = parse_json_object(response)
        if answer is None:
            raise ServiceError(f"{place} answered no JSON object of a service: {excerpt(response)}")
        return answer

    def _send(
        self, method: str, route: str, content: bytes | None
    ) -> Steps[tuple[httpx.Response, str]]:
        identifier = f"client-{uuid.uuid4().hex}"
        headers = {"X-Request-Id": identifier}
        tries = 0
        deadline: float | None = None
        while True:
            address = self.endpoints.acquire()
            sent_at = time.monotonic()
            tries += 1
            try:
                url = address.url.join(route.lstrip("/"))
                came = yield OutgoingRequest(method, url, {**headers, **address.headers}, content)
            finally:
                self.endpoints.release(address)
            assert came is not None
            if isinstance(came, httpx.Response) and came.is_success:
                self.endpoints.mark_healthy(address)
                return came, address.display_url
            wait = None
            if is_retryable(came):
                self.endpoints.mark_failed(address, came, sent_at)
                now = time.monotonic()
                # From here: the first try may have taken as long as its work does.
                deadline = now + self.retry_s if deadline is None else deadline
                wait = self.endpoints.compute_wait()
                if now + wait > deadline:
                    wait = None
            if wait is None:
                told = ServiceError(
                    f"{address.describe_failure(came)} ({tries} tries, request {identifier})"
                )
                told.retryable = is_retryable(came)
                told.status = came.status_code if isinstance(came, httpx.Response) else None
                raise told
            why = escape_line(address.describe_failure(came))
            logger.warning("%s; trying again in %.1f s", why, wait)
            self.on_retry()
            if wait:
                yield Pause(wait)


def encode_json(value: object) -> str:
    """JSON; arrays and numbers of numpy become lists and numbers.

    Raises:
        ValueError: it has NaN or an infinite number.
        TypeError: it has something that JSON has no form for.
    """
    # Not httpx's own encoding, which raises on half of a surrogate pair.
    return json.dumps(value, allow_nan=False, default=_encode_array)


def _encode_array(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
