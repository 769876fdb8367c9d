"""The limit after which a batch counts as stuck."""

from __future__ import annotations

import pytest

from serve.worker.worker import BatchWatchdog


class FakeClock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("serve.worker.worker.time.perf_counter", lambda: self.now)


def measure_limit(watchdog: BatchWatchdog, clock: FakeClock, num_tokens: int) -> float:
    """Seconds after which a batch that begins now is stuck, to a tenth."""
    watchdog.begin(num_tokens)
    started_at = clock.now
    while watchdog.stall_reason() is None:
        clock.now += 0.1
    watchdog.stop()
    return clock.now - started_at


@pytest.mark.parametrize(("compiled", "seconds"), [(False, 120), (True, 900)])
def test_limit_is_at_least_minimum(
    compiled: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(monkeypatch)
    watchdog = BatchWatchdog(is_compiled=compiled)
    assert measure_limit(watchdog, clock, 100) == pytest.approx(seconds, abs=0.2)
    watchdog.observe(1000, 0.001)
    assert measure_limit(watchdog, clock, 100) == pytest.approx(seconds, abs=0.2)


def test_limit_is_20_times_expected_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    watchdog = BatchWatchdog(is_compiled=False)
    watchdog.observe(1000, 50.0)
    assert measure_limit(watchdog, clock, 4096) == pytest.approx(20 * 4096 * 0.05, abs=0.2)
    # A finished batch counts, and more than earlier ones; an unfinished batch does not.
    watchdog.begin(1000)
    clock.now += 10
    watchdog.begin(1000)
    clock.now += 10
    watchdog.finish()
    watchdog.begin(1)
    clock.now += 1e6
    watchdog.stop()
    rate = (0.81 * 50 + 0.9 * 10 + 10) / (0.81 * 1000 + 0.9 * 1000 + 1000)
    assert measure_limit(watchdog, clock, 4096) == pytest.approx(20 * 4096 * rate, abs=0.2)


def test_stuck_after_s_overrides_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    watchdog = BatchWatchdog(is_compiled=True, stuck_after_s=60)
    watchdog.stuck_after_s = 3.0
    watchdog.begin(100)
    clock.now += 4
    assert watchdog.stall_reason() == "a batch of 100 tokens has run for 4 s (limit: 3 s)"
    watchdog.finish()
    assert watchdog.stall_reason() is None
