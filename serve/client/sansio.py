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

from serve.client.bodies import json_of, quoted
from serve.client.endpoints import Addresses
from serve.client.errors import ServiceError
from serve.client.retries import may_go_away
from serve.escaping import escaped_line

logger = logging.getLogger("serve.client")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request now, and give back the answer or what went wrong with the connection."""

    method: str
    url: httpx.URL
    headers: dict[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Steps: TypeAlias = Generator[Send | Pause, httpx.Response | httpx.HTTPError | None, T]


@dataclass(frozen=True, slots=True)
class Sender:
    """Where requests of a client go.

    Attributes:
        addresses: of the service.
        retry_s: seconds after a request's first failure in which it is tried again.
        on_retry: called each time that something is sent again.
    """

    addresses: Addresses
    retry_s: float
    on_retry: Callable[[], None]

    def ask(self, method: str, route: str, content: bytes | None = None) -> Steps[dict[str, Any]]:
        """The JSON object that is answered in the end.

        Raises:
            ServiceError: the request failed.
        """
        response, place = yield from self._send(method, route, content)
        answer = json_of(response)
        if answer is None:
            raise ServiceError(f"{place} answered no JSON object of a service: {quoted(response)}")
        return answer

    def _send(
        self, method: str, route: str, content: bytes | None
    ) -> Steps[tuple[httpx.Response, str]]:
        identifier = f"client-{uuid.uuid4().hex}"
        headers = {"X-Request-Id": identifier}
        tries = 0
        deadline: float | None = None
        while True:
            address = self.addresses.begin()
            sent_at = time.monotonic()
            tries += 1
            try:
                url = address.url.join(route.lstrip("/"))
                came = yield Send(method, url, {**headers, **address.headers}, content)
            finally:
                self.addresses.end(address)
            assert came is not None
            if isinstance(came, httpx.Response) and came.is_success:
                self.addresses.worked(address)
                return came, address.place
            wait = None
            if may_go_away(came):
                self.addresses.failed(address, came, sent_at)
                now = time.monotonic()
                # From here: the first try may have taken as long as its work does.
                deadline = now + self.retry_s if deadline is None else deadline
                wait = self.addresses.wait()
                if now + wait > deadline:
                    wait = None
            if wait is None:
                told = ServiceError(f"{address.told(came)} ({tries} tries, request {identifier})")
                told.may_pass = may_go_away(came)
                told.status = came.status_code if isinstance(came, httpx.Response) else None
                raise told
            why = escaped_line(address.told(came))
            logger.warning("%s; trying again in %.1f s", why, wait)
            self.on_retry()
            if wait:
                yield Pause(wait)


def encoded(value: object) -> str:
    """JSON; arrays and numbers of numpy become lists and numbers.

    Raises:
        ValueError: it has NaN or an infinite number.
        TypeError: it has something that JSON has no form for.
    """
    # Not httpx's own encoding, which raises on half of a surrogate pair.
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
