"""The cache of rewards: bounded memory, LRU eviction, and no reward under a wrong key."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import Fingerprint, ScoreCache, ScoreError, cache_keys
from rm_core.cache import ENTRY_BYTES

FINGERPRINT = Fingerprint("r", "t", "float32", "eager")
KEYS = cache_keys(FINGERPRINT, [(i,) for i in range(8)])

OPERATIONS = st.lists(st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 7)), max_size=60)


@given(OPERATIONS, st.integers(0, 5), st.integers(0, ENTRY_BYTES - 1))
def test_cache_behaves_like_an_lru_list(
    operations: list[tuple[str, int]], capacity: int, rest: int
) -> None:
    cache = ScoreCache(capacity * ENTRY_BYTES + rest)
    last_used: list[int] = []  # oldest first
    written: dict[int, float] = {}
    hits = misses = evictions = 0
    for step, (operation, name) in enumerate(operations):
        is_cached = name in last_used
        if operation == "get":
            assert cache.get(KEYS[name]) == (written[name] if is_cached else None)
            hits, misses = hits + is_cached, misses + (not is_cached)
        else:
            written[name] = float(step)
            cache.put(KEYS[name], float(step))
        if is_cached:
            last_used.remove(name)
        if is_cached or operation == "put":
            last_used.append(name)
        if len(last_used) > capacity:
            del last_used[0]
            evictions += 1
        stats = cache.stats
        assert stats.entries == len(last_used) <= capacity
        assert stats.bytes == stats.entries * ENTRY_BYTES <= stats.max_bytes
        assert (stats.hits, stats.misses, stats.evictions) == (hits, misses, evictions)


def test_least_recently_used_entry_is_evicted_first() -> None:
    cache = ScoreCache(2 * ENTRY_BYTES)
    cache.put(KEYS[0], 0.0)
    cache.put(KEYS[1], 1.0)
    assert cache.get(KEYS[0]) == 0.0
    cache.put(KEYS[2], 2.0)
    assert [cache.get(key) for key in KEYS[:3]] == [0.0, None, 2.0]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), ScoreError("device_memory", "")])
def test_only_finite_rewards_are_kept(reward: float | ScoreError) -> None:
    cache = ScoreCache(1000 * ENTRY_BYTES)
    cache.put(KEYS[0], reward)
    assert cache.get(KEYS[0]) is None
    assert cache.stats.entries == 0


@pytest.mark.parametrize(
    "num_entries", [3000, 21_846, 43_691]
)  # the table has just grown in the last two
def test_memory_of_entries_is_within_the_estimate(num_entries: int) -> None:
    keys = cache_keys(FINGERPRINT, ((i,) for i in range(3 * num_entries)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = ScoreCache(num_entries * ENTRY_BYTES)
        for i, key in enumerate(keys):
            cache.put(bytes(bytearray(key)), i + 0.5)  # a key that only the cache references
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.stats.entries == num_entries
    assert 0.3 * cache.stats.bytes < after - before <= cache.stats.bytes


def test_keys_depend_on_every_fingerprint_field_and_token() -> None:
    other = [replace(FINGERPRINT, **{field.name: "x"}) for field in fields(FINGERPRINT)]
    shifted = [Fingerprint("rt", "", "float32", "eager"), Fingerprint("", "rt", "float32", "eager")]
    sequences = [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (1, 2 + 2**16), (258,)]
    keys = [
        key
        for fingerprint in (FINGERPRINT, *other, *shifted)
        for key in cache_keys(fingerprint, sequences)
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}
    assert cache_keys(FINGERPRINT, [[1, 2]]) == cache_keys(FINGERPRINT, [(1, 2)]) == keys[:1]


def test_cache_is_thread_safe() -> None:
    cache = ScoreCache(4 * ENTRY_BYTES)

    def use(shift: int) -> None:
        for step in range(2000):
            name = (step * 5 + shift) % 8
            assert cache.get(KEYS[name]) in (None, float(name))
            cache.put(KEYS[name], float(name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    stats = cache.stats
    assert stats.entries == 4
    assert stats.hits + stats.misses == 8 * 2000
