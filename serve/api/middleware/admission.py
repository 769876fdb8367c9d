"""How much is held at one time: scoring requests, those of one client, and bytes.

Bytes of bodies are shared. A client may hold as many as then remain for all others: half of them
alone, a third each if there are two, and so on; so no number of stalled bodies of one client locks
another out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rm_core import OverloadedError
from serve.config.settings import Settings
from serve.errors import TooManyRequestsError
from serve.telemetry.context import ANONYMOUS


@dataclass(slots=True)
class _Usage:
    """What requests hold.

    Attributes:
        arriving: requests whose bodies are being read.
        running: requests that are being answered.
        body_bytes: of bodies.
        answer_bytes: of answers that their clients have not taken yet.
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
    """Counts what all requests of a process hold. Used on one event loop alone.

    Args:
        settings: of this moment, with the limits.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._all = _Usage()
        self._by_client: defaultdict[str, _Usage] = defaultdict(_Usage)

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return self._all.num_running

    @property
    def num_bytes(self) -> int:
        """Bytes of bodies and answers that are held."""
        return self._all.num_bytes

    def check(self, client: str) -> None:
        """Refuse what could not be started now.

        Raises:
            TooManyRequestsError: this client has as many running as it may.
            OverloadedError: all clients together have.
        """
        settings, mine = self._settings(), self._by_client.get(client)
        # Without keys everybody is one client, and trainers that never repeat a 4xx shall hear 503.
        if mine is not None and client != ANONYMOUS:
            _check_number(mine.num_running, settings.max_requests_per_key, "running")
        if self._all.num_running >= settings.max_requests:
            raise OverloadedError(
                f"{settings.max_requests:,} requests are running, the most that the service takes; "
                "send the request again"
            )

    def check_receiving(self, client: str) -> None:
        """Refuse a body that could not be received now, or not be started.

        Raises:
            TooManyRequestsError: this client has as many arriving or running as it may.
            OverloadedError: all clients together have as many running as they may.
        """
        self.check(client)
        mine = self._by_client.get(client)
        if mine is not None and client != ANONYMOUS:
            _check_number(
                mine.num_receiving, self._settings().max_requests_per_key, "being received"
            )

    def check_bytes(self, client: str, number: int) -> None:
        """Refuse more bytes of a body than can be held now.

        Raises:
            TooManyRequestsError: this client would hold more than its share.
            OverloadedError: all clients together would hold too much.
        """
        settings, mine = self._settings(), self._by_client[client]
        limit, bodies = settings.max_buffered_bytes, self._all.body_bytes + number
        # One body must always fit.
        share = max(settings.max_body_bytes, limit - bodies)
        if client != ANONYMOUS and mine.num_bytes + number > share:
            raise TooManyRequestsError(
                f"your requests and the answers that you have not read hold {mine.num_bytes:,} "
                f"bytes, and {share:,} is the most of one caller now; wait for some of them"
            )
        if bodies + mine.response_bytes > limit:
            raise OverloadedError(
                f"bodies of {limit:,} bytes are held, the most at one time; send the request again"
            )

    def create_slot(self, client: str) -> AdmissionSlot:
        """What a new request of a client holds: nothing yet."""
        return AdmissionSlot(self, client)

    def _add(self, client: str, *numbers: int) -> None:
        self._all.add(*numbers)
        mine = self._by_client[client]
        mine.add(*numbers)
        if not (mine.num_receiving or mine.num_running or mine.num_bytes):
            del self._by_client[client]  # there may be any number of clients in time


def _check_number(number: int, limit: int, what: str) -> None:
    if number >= limit:
        raise TooManyRequestsError(
            f"{limit:,} of your requests are {what}, the most of one caller; wait for some of "
            "them, and put more conversations into each"
        )


class AdmissionSlot:
    """What one request holds; gives it all back at the end of the `with` block, or sooner."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._usage = _Usage()

    def start_receiving(self) -> None:
        """Be one of the requests that are being received.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check_receiving`.
        """
        self._admission.check_receiving(self._client)
        self._add(1, 0, 0, 0)

    def add_body_bytes(self, number: int) -> None:
        """Hold more of a body.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check_bytes`.
        """
        self._admission.check_bytes(self._client, number)
        self._add(0, 0, number, 0)

    def start_running(self) -> None:
        """Be one of the running requests, and none of those that are being received.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check`.
        """
        self._admission.check(self._client)
        self._add(-self._usage.num_receiving, 1, 0, 0)

    def add_response_bytes(self, number: int) -> None:
        """Hold more of an answer, which is never refused."""
        self._add(0, 0, 0, number)

    def release(self) -> None:
        """Give back what is held. May be called again."""
        held = self._usage
        self._add(-held.num_receiving, -held.num_running, -held.body_bytes, -held.response_bytes)

    def _add(self, *numbers: int) -> None:
        self._usage.add(*numbers)
        self._admission._add(self._client, *numbers)

    def __enter__(self) -> AdmissionSlot:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()
