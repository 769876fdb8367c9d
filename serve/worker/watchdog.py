"""Detects a batch that has been on a device for longer than a healthy one would take.

The owner of a device keeps the watchdog: `serve.worker.worker` in the service, an actor of a job on
Ray. Other threads query it. The limit of a batch follows from the batches before it.
"""

from __future__ import annotations

import time

# A batch is stuck after so many times its expected duration, and after at least so many seconds.
# Compiled layers wait for the compiler whenever a row has a new length.
_FACTOR = 20
_MIN_LIMIT_S = 120.0
_MIN_LIMIT_COMPILED_S = 900.0
# Factor by which the weight of earlier batches decays with each new one, in the mean rate.
_DECAY = 0.9


class BatchWatchdog:
    """Tracks the running batch of a device.

    Args:
        is_compiled: whether the model's layers are compiled.
        stuck_after_s: seconds after which a running batch is stuck; None: 20 times the duration
            expected from the batches before it, at least 120 (900 if compiled).

    Attributes:
        stuck_after_s: see above; may be changed at any time.
    """

    def __init__(self, *, is_compiled: bool, stuck_after_s: float | None = None) -> None:
        self.stuck_after_s = stuck_after_s
        self._min_limit_s = _MIN_LIMIT_COMPILED_S if is_compiled else _MIN_LIMIT_S
        self._running: tuple[float, int] | None = None  # start time, number of tokens
        self._tokens, self._seconds = 0.0, 0.0  # of earlier batches, decayed

    def begin(self, num_tokens: int) -> None:
        """Record that a batch starts on the device; a batch before it is finished."""
        self.finish()
        self._running = (time.perf_counter(), num_tokens)

    def finish(self) -> None:
        """Record that the batch on the device is finished."""
        if self._running is not None:
            started_at, num_tokens = self._running
            self.observe(num_tokens, time.perf_counter() - started_at)
        self._running = None

    def stop(self) -> None:
        """Record that nothing is on the device, and discard the duration of an unfinished batch."""
        self._running = None

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of a batch."""
        self._tokens = _DECAY * self._tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds

    def stall_reason(self) -> str | None:
        """Describe a batch that has run for too long; None if there is none."""
        if (running := self._running) is None:
            return None
        started_at, num_tokens = running
        seconds, limit_s = time.perf_counter() - started_at, self._compute_limit_s(num_tokens)
        if seconds <= limit_s:
            return None
        return (
            f"a batch of {num_tokens} tokens has run for {seconds:.0f} s (limit: {limit_s:.0f} s)"
        )

    def _compute_limit_s(self, num_tokens: int) -> float:
        if self.stuck_after_s is not None:
            return self.stuck_after_s
        expected_s = num_tokens * self._seconds / max(1.0, self._tokens)
        return max(self._min_limit_s, _FACTOR * expected_s)
