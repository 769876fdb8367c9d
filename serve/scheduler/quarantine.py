"""The history of conversations that were with a replica when it was lost.

The history outlives requests: a client that gives up on a conversation which crashes replicas and
sends it again must not reset its count. Entries expire, because two crashes may be a coincidence.
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
"""A conversation that was with so many replicas when they were lost is not sent to another."""

# Each takes some hundred bytes, and there are rarely any at all.
_MAX_REMEMBERED = 10_000
_RETENTION_S = 600.0


@dataclass(slots=True)
class _Crashes:
    last_at: float
    replicas: set[str] = field(default_factory=set)


class CrashHistory:
    """Counts the replicas that were lost with a sequence of token ids; expires after 600 s.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: OrderedDict[bytes, _Crashes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._crashes)

    def add(self, sequence: TokenIds, replica: str) -> int:
        """Record a lost replica; return how many different replicas were lost with the sequence."""
        key, now = _hash_sequence(sequence), self._clock()
        crashes = self._crashes.pop(key, None) or _Crashes(now)
        crashes.last_at = now
        crashes.replicas.add(replica)
        self._crashes[key] = crashes
        if len(self._crashes) > _MAX_REMEMBERED:
            self._crashes.popitem(last=False)
        return len(crashes.replicas)

    def count(self, sequence: TokenIds) -> int:
        """Return how many different replicas were lost with the sequence."""
        key = _hash_sequence(sequence)
        crashes = self._crashes.get(key)
        if crashes is None:
            return 0
        if self._clock() - crashes.last_at > _RETENTION_S:
            del self._crashes[key]
            return 0
        return len(crashes.replicas)

    def forget(self, sequence: TokenIds) -> None:
        """Forget a sequence that was scored: it did not cause the crashes."""
        if self._crashes:
            self._crashes.pop(_hash_sequence(sequence), None)


def build_quarantine_error(sequence: TokenIds) -> ScoreError:
    """Build the error of a conversation that is not sent to another replica."""
    error = ConversationQuarantinedError(
        f"this conversation of {len(sequence)} tokens was with {MAX_CRASHES} replicas when they "
        "were lost, so it is not sent to another for some minutes; the service's log has the "
        "details"
    )
    return ScoreError.from_exception(error)


def _hash_sequence(sequence: TokenIds) -> bytes:
    return hashlib.blake2b(array("q", sequence).tobytes(), digest_size=16).digest()
