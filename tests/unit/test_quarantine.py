"""The history of conversations that were with a lost replica."""

from __future__ import annotations

from serve.scheduler.pending import CrashHistory


def test_crashes_count_distinct_replicas_and_expire() -> None:
    now = 0.0
    history = CrashHistory(lambda: now)
    assert not history
    assert [history.add((1, 2), replica) for replica in ("a", "a", "b")] == [1, 1, 2]
    assert (history.count((1, 2)), history.count((1,))) == (2, 0)
    now = 3_600.0
    assert history.count((1, 2)) == 0
    assert not history


def test_crash_history_drops_oldest_entries() -> None:
    history = CrashHistory()
    for number in range(10_001):
        history.add((number,), "a")
    assert (history.count((0,)), history.count((1,))) == (0, 1)
