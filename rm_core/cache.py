"""Rewards that were computed before, by what determines them; bounded in bytes. No torch.

A key is a digest of the model's fingerprint and the token ids, so that nothing computed by another
checkpoint, dtype or attention is ever answered, and the ids themselves, which are far bigger than
a reward, are not kept.
"""

from __future__ import annotations

import hashlib
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from rm_core.types import Fingerprint, ScoreError

# 128 bits: among 2**32 conversations, two share a key with a probability of 3e-20.
_KEY_BYTES = 16

# What an entry adds to a process on CPython 3.11, 64 bits: 96 bytes of key and reward, a list node
# of 48, and the rest its share of the hash table just after that has grown. Measured as resident
# memory per entry, over 0.5 to 1.4 million of them and two full turnovers: 182 to 344, and 356
# while the table moves. The largest is taken, so that the bound holds at every size.
ENTRY_BYTES = 360


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters of a cache since it was made, and how full it is.

    Attributes:
        hits: look-ups that were answered.
        misses: look-ups that were not.
        evictions: entries that made room for others.
        entries: rewards held now.
        bytes: memory that they are reckoned to take.
        max_bytes: the bound.
    """

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    max_bytes: int


class ScoreCache:
    """Rewards by key; the one used longest ago goes first. Safe to use from several threads.

    Args:
        max_bytes: most memory of all entries together.
    """

    def __init__(self, max_bytes: int) -> None:
        assert max_bytes >= 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rewards: OrderedDict[bytes, float] = OrderedDict()  # used longest ago first
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def get(self, key: bytes) -> float | None:
        """The reward of a key of `cache_keys`; None if it is not here."""
        with self._lock:
            reward = self._rewards.get(key)
            if reward is None:
                self._misses += 1
            else:
                self._hits += 1
                self._rewards.move_to_end(key)
            return reward

    def put(self, key: bytes, reward: float | ScoreError) -> None:
        """Keep a finite reward; anything else is left out, since the next try may do better."""
        if isinstance(reward, ScoreError) or not math.isfinite(reward):
            return
        with self._lock:
            self._rewards[key] = reward
            self._rewards.move_to_end(key)
            if len(self._rewards) * ENTRY_BYTES > self._max_bytes:
                self._rewards.popitem(last=False)
                self._evictions += 1

    @property
    def stats(self) -> CacheStats:
        """The counters of this moment."""
        with self._lock:
            entries = len(self._rewards)
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=entries,
                bytes=entries * ENTRY_BYTES,
                max_bytes=self._max_bytes,
            )


def cache_keys(
    fingerprint: Fingerprint, sequences: Iterable[Sequence[int]], scope: str = ""
) -> list[bytes]:
    """The key of each sequence of token ids, in order; other scopes have other keys.

    It takes 17 ns per token on one core; rendering and tokenizing take 100 times as long.
    """
    # Every field ends in a zero byte, so that no two fingerprints run into each other or the ids.
    start = hashlib.blake2b(digest_size=_KEY_BYTES)
    start.update("".join(f"{value}\0" for value in (*astuple(fingerprint), scope)).encode())
    keys = []
    for sequence in sequences:
        digest = start.copy()
        digest.update(array("I", sequence))
        keys.append(digest.digest())
    return keys
