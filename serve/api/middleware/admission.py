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
class _Held:
    """What requests hold.

    Attributes:
        arriving: requests whose bodies are being read.
        running: requests that are being answered.
        body_bytes: of bodies.
        answer_bytes: of answers that their clients have not taken yet.
    """

    arriving: int = 0
    running: int = 0
    body_bytes: int = 0
    answer_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.body_bytes + self.answer_bytes

    def add(self, arriving: int, running: int, body_bytes: int, answer_bytes: int) -> None:
        self.arriving += arriving
        self.running += running
        self.body_bytes += body_bytes
        self.answer_bytes += answer_bytes


class Admission:
    """Counts what all requests of a process hold. Used on one event loop alone.

    Args:
        settings: of this moment, with the limits.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._all = _Held()
        self._by_client: defaultdict[str, _Held] = defaultdict(_Held)

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return self._all.running

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
            _check_number(mine.running, settings.max_requests_per_key, "running")
        if self._all.running >= settings.max_requests:
            raise OverloadedError(
                f"{settings.max_requests:,} requests are running, the most that the service takes; "
                "send the request again"
            )

    def check_arriving(self, client: str) -> None:
        """Refuse a body that could not be received now, or not be started.

        Raises:
            TooManyRequestsError: this client has as many arriving or running as it may.
            OverloadedError: all clients together have as many running as they may.
        """
        self.check(client)
        mine = self._by_client.get(client)
        if mine is not None and client != ANONYMOUS:
            _check_number(mine.arriving, self._settings().max_requests_per_key, "being received")

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
        if bodies + mine.answer_bytes > limit:
            raise OverloadedError(
                f"bodies of {limit:,} bytes are held, the most at one time; send the request again"
            )

    def ticket(self, client: str) -> Ticket:
        """What a new request of a client holds: nothing yet."""
        return Ticket(self, client)

    def _add(self, client: str, *numbers: int) -> None:
        self._all.add(*numbers)
        mine = self._by_client[client]
        mine.add(*numbers)
        if not (mine.arriving or mine.running or mine.num_bytes):
            del self._by_client[client]  # there may be any number of clients in time


def _check_number(number: int, limit: int, what: str) -> None:
    if number >= limit:
        raise TooManyRequestsError(
            f"{limit:,} of your requests are {what}, the most of one caller; wait for some of "
            "them, and put more conversations into each"
        )


class Ticket:
    """What one request holds; gives it all back at the end of the `with` block, or sooner."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._held = _Held()

    def arrive(self) -> None:
        """Be one of the requests that are being received.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check_arriving`.
        """
        self._admission.check_arriving(self._client)
        self._add(1, 0, 0, 0)

    def add_bytes(self, number: int) -> None:
        """Hold more of a body.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check_bytes`.
        """
        self._admission.check_bytes(self._client, number)
        self._add(0, 0, number, 0)

    def start(self) -> None:
        """Be one of the running requests, and none of those that are being received.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check`.
        """
        self._admission.check(self._client)
        self._add(-self._held.arriving, 1, 0, 0)

    def add_answer(self, number: int) -> None:
        """Hold more of an answer, which is never refused."""
        self._add(0, 0, 0, number)

    def release(self) -> None:
        """Give back what is held. May be called again."""
        held = self._held
        self._add(-held.arriving, -held.running, -held.body_bytes, -held.answer_bytes)

    def _add(self, *numbers: int) -> None:
        self._held.add(*numbers)
        self._admission._add(self._client, *numbers)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()
