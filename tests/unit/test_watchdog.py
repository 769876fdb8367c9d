"""When a batch counts as stuck."""

from __future__ import annotations

import pytest

from serve.worker import watchdog
from serve.worker.watchdog import BatchWatchdog


class Time:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(watchdog.time, "perf_counter", lambda: self.now)


def limit_of(clock: BatchWatchdog, time: Time, num_tokens: int) -> float:
    """Seconds after which a batch that begins now is stuck, to a tenth."""
    clock.begin(num_tokens)
    began = time.now
    while clock.stall_reason() is None:
        time.now += 0.1
    clock.stop()
    return time.now - began


@pytest.mark.parametrize(("compiled", "seconds"), [(False, 120), (True, 900)])
def test_limit_is_at_least_minimum(
    compiled: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time(monkeypatch)
    clock = BatchWatchdog(is_compiled=compiled)
    assert limit_of(clock, time, 100) == pytest.approx(seconds, abs=0.2)
    clock.observe(1000, 0.001)
    assert limit_of(clock, time, 100) == pytest.approx(seconds, abs=0.2)


def test_limit_is_20_times_expected_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = BatchWatchdog(is_compiled=False)
    clock.observe(1000, 50.0)
    assert limit_of(clock, time, 4096) == pytest.approx(20 * 4096 * 0.05, abs=0.2)
    # A batch that is done counts, and more than those before it; one that is not done does not.
    clock.begin(1000)
    time.now += 10
    clock.begin(1000)
    time.now += 10
    clock.finish()
    clock.begin(1)
    time.now += 1e6
    clock.stop()
    rate = (0.81 * 50 + 0.9 * 10 + 10) / (0.81 * 1000 + 0.9 * 1000 + 1000)
    assert limit_of(clock, time, 4096) == pytest.approx(20 * 4096 * rate, abs=0.2)


def test_stuck_after_s_overrides_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = BatchWatchdog(is_compiled=True, stuck_after_s=60)
    clock.stuck_after_s = 3.0
    clock.begin(100)
    time.now += 4
    assert clock.stall_reason() == "a batch of 100 tokens has run for 4 s (limit: 3 s)"
    clock.finish()
    assert clock.stall_reason() is None
