"""The I/O-free core of the clients: what to send, when to wait, when to retry.

A generator yields requests and pauses. The client that runs the generator, on a thread or in an
event loop, sends back each response or exception. Both clients share all decisions in this way.
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
    """A step: send this request, and return the response or the exception of the connection."""

    method: str
    url: httpx.URL
    headers: dict[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait for this time before the generator continues."""

    seconds: float


Steps: TypeAlias = Generator[OutgoingRequest | Pause, httpx.Response | httpx.HTTPError | None, T]


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends requests to the endpoints of a client, with retries.

    Attributes:
        endpoints: endpoints of the service.
        retry_timeout_s: seconds after a request's first failure in which it is retried.
        on_retry: called before each retry.
    """

    endpoints: EndpointPool
    retry_timeout_s: float
    on_retry: Callable[[], None]

    def request(
        self, method: str, route: str, content: bytes | None = None
    ) -> Steps[dict[str, Any]]:
        """Return the JSON object of the final response.

        Raises:
            ServiceError: the request failed.
        """
        response, display_url = yield from self._send(method, route, content)
        body = parse_json_object(response)
        if body is None:
            raise ServiceError(
                f"{display_url} did not answer with a JSON object of a service: {excerpt(response)}"
            )
        return body

    def _send(
        self, method: str, route: str, content: bytes | None
    ) -> Steps[tuple[httpx.Response, str]]:
        request_id = f"client-{uuid.uuid4().hex}"
        headers = {"X-Request-Id": request_id}
        num_tries = 0
        deadline: float | None = None
        while True:
            endpoint = self.endpoints.acquire()
            sent_at = time.monotonic()
            num_tries += 1
            try:
                url = endpoint.url.join(route.lstrip("/"))
                outcome = yield OutgoingRequest(
                    method, url, {**headers, **endpoint.headers}, content
                )
            finally:
                self.endpoints.release(endpoint)
            assert outcome is not None
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                self.endpoints.mark_healthy(endpoint)
                return outcome, endpoint.display_url
            delay_s = None
            if is_retryable(outcome):
                self.endpoints.mark_failed(endpoint, outcome, sent_at)
                now = time.monotonic()
                # Counted from the first failure: the first try may itself have taken long.
                deadline = now + self.retry_timeout_s if deadline is None else deadline
                delay_s = self.endpoints.compute_wait()
                if now + delay_s > deadline:
                    delay_s = None
            if delay_s is None:
                raise ServiceError(
                    f"{endpoint.describe_failure(outcome)} "
                    f"({num_tries} tries, request {request_id})",
                    retryable=is_retryable(outcome),
                    status=outcome.status_code if isinstance(outcome, httpx.Response) else None,
                )
            reason = escape_line(endpoint.describe_failure(outcome))
            logger.warning("%s; trying again in %.1f s", reason, delay_s)
            self.on_retry()
            if delay_s:
                yield Pause(delay_s)


def encode_json(value: object) -> str:
    """Encode a value as JSON; numpy arrays and scalars become lists and numbers.

    Raises:
        ValueError: the value has NaN or an infinite number.
        TypeError: the value has an object that JSON cannot represent.
    """
    # Not httpx's encoding, which raises on half of a surrogate pair.
    return json.dumps(value, allow_nan=False, default=_encode_array)


def _encode_array(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
