"""Which conversations were with a replica when it was lost, also after their client has gone.

A client that gives up on what kills replicas, and posts it again, must not have it start from
nothing. Not for ever: what was lost twice may have met with two accidents.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from rm_core import ScoreError
from rm_core.packing import TokenIds
from serve.errors import ConversationQuarantinedError

MAX_CRASHES = 2
"""What was at so many replicas when they were lost is not sent to another."""

# Of some hundred bytes each, and rarely any at all.
_MAX_REMEMBERED = 10_000
_RETENTION_S = 600.0


@dataclass(slots=True)
class _Crashes:
    last_at: float
    replicas: set[str] = field(default_factory=set)


class CrashHistory:
    """Counts, for a while, the replicas that were lost with a sequence of token ids.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: OrderedDict[bytes, _Crashes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._crashes)

    def add(self, sequence: TokenIds, replica: str) -> int:
        """One more; returns how many different replicas there were by now."""
        key, now = _key(sequence), self._clock()
        loss = self._crashes.pop(key, None) or _Crashes(now)
        loss.last_at = now
        loss.replicas.add(replica)
        self._crashes[key] = loss
        if len(self._crashes) > _MAX_REMEMBERED:
            self._crashes.popitem(last=False)
        return len(loss.replicas)

    def count(self, sequence: TokenIds) -> int:
        """How many different replicas were lost with it."""
        key = _key(sequence)
        loss = self._crashes.get(key)
        if loss is None:
            return 0
        if self._clock() - loss.last_at > _RETENTION_S:
            del self._crashes[key]
            return 0
        return len(loss.replicas)

    def forget(self, sequence: TokenIds) -> None:
        """It was scored: it was not to blame."""
        if self._crashes:
            self._crashes.pop(_key(sequence), None)


def build_quarantine_error(sequence: TokenIds) -> ScoreError:
    """What is told of a conversation that is not sent to another replica."""
    gave_up = ConversationQuarantinedError(
        f"this conversation of {len(sequence)} tokens was with {MAX_CRASHES} replicas when they "
        "were lost, so it is not sent to another for some minutes; the service's log has the "
        "details"
    )
    return ScoreError.from_exception(gave_up)


def _key(sequence: TokenIds) -> bytes:
    return hashlib.blake2b(array("q", sequence).tobytes(), digest_size=16).digest()
