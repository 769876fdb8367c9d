"""What is remembered of conversations that were there when a replica was lost."""

from __future__ import annotations

from serve.scheduler.quarantine import CrashHistory


def test_crashes_count_distinct_replicas_and_expire() -> None:
    now = 0.0
    losses = CrashHistory(lambda: now)
    assert not losses
    assert [losses.add((1, 2), replica) for replica in ("a", "a", "b")] == [1, 1, 2]
    assert (losses.count((1, 2)), losses.count((1,))) == (2, 0)
    now = 3_600.0
    assert losses.count((1, 2)) == 0
    assert not losses


def test_crash_history_drops_oldest_entries() -> None:
    losses = CrashHistory()
    for number in range(10_001):
        losses.add((number,), "a")
    assert (losses.count((0,)), losses.count((1,))) == (0, 1)
