"""How much is held at one time: scoring requests, those of one caller, and bytes of bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType

from rm_core import OverloadedError
from serve.problems import TooManyRequestsError
from serve.record.request import ANONYMOUS
from serve.settings import Settings


class Admission:
    """Counts what all requests of a process hold. Used on one event loop alone.

    Args:
        settings: of this moment, with the limits.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._num_running: Counter[str] = Counter()
        self._num_bytes = 0

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return self._num_running.total()

    @property
    def num_bytes(self) -> int:
        """Bytes of bodies that are held."""
        return self._num_bytes

    @property
    def max_buffered_bytes(self) -> int:
        """Most bytes of bodies that may be held."""
        return self._settings().max_buffered_bytes

    def check(self, client: str) -> None:
        """Refuse what could not be started now.

        Raises:
            TooManyRequestsError: this client has as many running as it may.
            OverloadedError: all clients together have.
        """
        settings = self._settings()
        # Without keys everybody is one caller, and trainers that never repeat a 4xx shall hear 503.
        if client != ANONYMOUS and self._num_running[client] >= settings.max_requests_per_key:
            raise TooManyRequestsError(
                f"{settings.max_requests_per_key:,} of your requests are running, the most of one "
                "caller; wait for some of them, and put more conversations into each"
            )
        if self.num_running >= settings.max_requests:
            raise OverloadedError(
                f"{settings.max_requests:,} requests are running, the most that the service takes; "
                "send the request again"
            )

    def ticket(self, client: str) -> Ticket:
        """What a new request of a client holds: nothing yet."""
        return Ticket(self, client)

    def _add(self, client: str, num_running: int, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._num_running[client] += num_running
        if not self._num_running[client]:
            del self._num_running[client]  # there may be any number of clients in time


class Ticket:
    """What one request holds; gives it all back at the end of the `with` block, or sooner."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._num_running = 0
        self._num_bytes = 0

    def add_bytes(self, number: int) -> None:
        """Hold more of a body.

        Raises:
            OverloadedError: all requests together would hold too much.
        """
        limit = self._admission.max_buffered_bytes
        if self._admission.num_bytes + number > limit:
            raise OverloadedError(
                f"bodies of {limit:,} bytes are held, the most at one time; send the request again"
            )
        self._admission._add(self._client, 0, number)
        self._num_bytes += number

    def start(self) -> None:
        """Be one of the running requests.

        Raises:
            TooManyRequestsError, OverloadedError: see `Admission.check`.
        """
        self._admission.check(self._client)
        self._admission._add(self._client, 1, 0)
        self._num_running += 1

    def release(self) -> None:
        """Give back what is held. May be called again."""
        self._admission._add(self._client, -self._num_running, -self._num_bytes)
        self._num_running = self._num_bytes = 0

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()
