"""Limits on concurrent scoring requests, in total and per client, and on buffered bytes.

Clients share the buffer for bodies. A client may use as many bytes as remain free for all others
after that: one client alone may use half of the buffer, two clients a third each, and so on. No
number of stalled bodies of one client can lock another client out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from rm_core import OverloadedError
from serve.config.settings import Settings
from serve.errors import TooManyRequestsError
from serve.telemetry.logging import ANONYMOUS


@dataclass(slots=True)
class _Usage:
    """Resources that requests use.

    Attributes:
        num_receiving: number of requests whose bodies are being read.
        num_running: number of requests that are being processed.
        body_bytes: bytes of buffered bodies.
        response_bytes: bytes of responses that the clients have not read yet.
    """

    num_receiving: int = 0
    num_running: int = 0
    body_bytes: int = 0
    response_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.body_bytes + self.response_bytes

    def add(
        self, num_receiving: int, num_running: int, body_bytes: int, response_bytes: int
    ) -> None:
        self.num_receiving += num_receiving
        self.num_running += num_running
        self.body_bytes += body_bytes
        self.response_bytes += response_bytes


class Admission:
    """The resources that all requests of a process use. Not thread-safe: for one event loop.

    Args:
        settings: returns the current settings, with the limits.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._all = _Usage()
        self._by_client: defaultdict[str, _Usage] = defaultdict(_Usage)

    @property
    def num_running(self) -> int:
        """Number of requests that are being processed."""
        return self._all.num_running

    @property
    def num_bytes(self) -> int:
        """Buffered bytes of bodies and responses."""
        return self._all.num_bytes

    def create_slot(self, client: str) -> AdmissionSlot:
        """Return the slot of a new request of a client, which uses no resources yet."""
        return AdmissionSlot(self, client)

    def _check_requests(self, client: str, *, is_receiving: bool) -> None:
        settings, usage = self._settings(), self._by_client.get(client)
        # Without keys, everyone is one client: trainers never retry a 4xx, so they must get a 503.
        if usage is not None and client != ANONYMOUS:
            _check_number(usage.num_running, settings.max_requests_per_key, "running")
        if self._all.num_running >= settings.max_requests:
            raise OverloadedError(
                f"{settings.max_requests:,} requests are running, the limit of the service; send "
                "the request again"
            )
        if is_receiving and usage is not None and client != ANONYMOUS:
            _check_number(usage.num_receiving, settings.max_requests_per_key, "being received")

    def _check_bytes(self, client: str, number: int) -> None:
        settings, usage = self._settings(), self._by_client[client]
        limit, body_bytes = settings.max_buffered_bytes, self._all.body_bytes + number
        # One body must always fit.
        share = max(settings.max_body_bytes, limit - body_bytes)
        if client != ANONYMOUS and usage.num_bytes + number > share:
            raise TooManyRequestsError(
                f"your requests and the responses that you have not read use {usage.num_bytes:,} "
                f"bytes, and the limit of one client is {share:,} now; wait for some of them"
            )
        if body_bytes + usage.response_bytes > limit:
            raise OverloadedError(
                f"the buffered bodies have {limit:,} bytes, the limit of the service; send the "
                "request again"
            )

    def _add(self, client: str, *numbers: int) -> None:
        self._all.add(*numbers)
        usage = self._by_client[client]
        usage.add(*numbers)
        if not (usage.num_receiving or usage.num_running or usage.num_bytes):
            del self._by_client[client]  # the number of clients over time is unbounded


def _check_number(number: int, limit: int, state: str) -> None:
    if number >= limit:
        raise TooManyRequestsError(
            f"{limit:,} of your requests are {state}, the limit of one client; wait for some of "
            "them, and put more conversations into each"
        )


class AdmissionSlot:
    """Resources of one request; a context manager that releases all of them on exit.

    A method raises `TooManyRequestsError` if this client, or `OverloadedError` if all clients
    together, would use more than the limit; the request then uses what it used before.
    """

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._usage = _Usage()

    def start_receiving(self) -> None:
        """Count the request as being received, if it could be started now."""
        self._admission._check_requests(self._client, is_receiving=True)
        self._add(1, 0, 0, 0)

    def add_body_bytes(self, number: int) -> None:
        """Reserve `number` more bytes for the body."""
        self._admission._check_bytes(self._client, number)
        self._add(0, 0, number, 0)

    def start_running(self) -> None:
        """Count the request as running, and no longer as being received."""
        self._admission._check_requests(self._client, is_receiving=False)
        self._add(-self._usage.num_receiving, 1, 0, 0)

    def add_response_bytes(self, number: int) -> None:
        """Reserve `number` more bytes for the response; never rejected."""
        self._add(0, 0, 0, number)

    def release(self) -> None:
        """Release all resources of the request. May be called again."""
        usage = self._usage
        self._add(
            -usage.num_receiving, -usage.num_running, -usage.body_bytes, -usage.response_bytes
        )

    def _add(self, *numbers: int) -> None:
        self._usage.add(*numbers)
        self._admission._add(self._client, *numbers)

    def __enter__(self) -> AdmissionSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
