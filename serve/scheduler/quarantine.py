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
from serve.errors import GaveUpError

MAX_LOSSES = 2
"""What was at so many replicas when they were lost is not sent to another."""

# Of some hundred bytes each, and rarely any at all.
_MAX_REMEMBERED = 10_000
_REMEMBERED_S = 600.0


@dataclass(slots=True)
class _Loss:
    last: float
    replicas: set[str] = field(default_factory=set)


class Losses:
    """Counts, for a while, the replicas that were lost with a sequence of token ids.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, _Loss] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, sequence: TokenIds, replica: str) -> int:
        """One more; returns how many different replicas there were by now."""
        key, now = _key(sequence), self._clock()
        loss = self._known.pop(key, None) or _Loss(now)
        loss.last = now
        loss.replicas.add(replica)
        self._known[key] = loss
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return len(loss.replicas)

    def of(self, sequence: TokenIds) -> int:
        """How many different replicas were lost with it."""
        key = _key(sequence)
        loss = self._known.get(key)
        if loss is None:
            return 0
        if self._clock() - loss.last > _REMEMBERED_S:
            del self._known[key]
            return 0
        return len(loss.replicas)

    def forget(self, sequence: TokenIds) -> None:
        """It was scored: it was not to blame."""
        if self._known:
            self._known.pop(_key(sequence), None)


def refusal_of(sequence: TokenIds) -> ScoreError:
    """What is told of a conversation that is not sent to another replica."""
    gave_up = GaveUpError(
        f"this conversation of {len(sequence)} tokens was with {MAX_LOSSES} replicas when they "
        "were lost, so it is not sent to another for some minutes; the service's log has the "
        "details"
    )
    return ScoreError.from_exception(gave_up)


def _key(sequence: TokenIds) -> bytes:
    return hashlib.blake2b(array("q", sequence).tobytes(), digest_size=16).digest()
