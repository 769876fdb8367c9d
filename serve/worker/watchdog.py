"""How fast a device works, and a batch that has been on it for longer than a healthy one would be.

The owner of a device keeps the watchdog, other threads query it. The limit of a batch follows from
the batches before it.
"""

from __future__ import annotations

import time

# A batch is stuck after so many times its expected duration, and after at least so many seconds.
# Compiled layers wait for the compiler whenever a row has a new length.
_FACTOR = 20
_MIN_LIMIT_S = 120.0
_MIN_LIMIT_COMPILED_S = 900.0


class RateEstimator:
    """Mean seconds a token of the batches so far, the latest ones weighing most.

    Args:
        decay: factor by which the weight of earlier batches decays with each new one.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._num_tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record the tokens of a batch and its seconds on a device."""
        self._num_tokens = self._decay * self._num_tokens + num_tokens
        self._seconds = self._decay * self._seconds + seconds

    def estimate_seconds(self, num_tokens: int) -> float | None:
        """Estimate how long one device takes for so many tokens; None if nothing was observed."""
        return num_tokens * self._seconds / self._num_tokens if self._num_tokens else None


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
        self._rate = RateEstimator(decay=0.9)

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
        self._rate.observe(num_tokens, seconds)

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
        return max(self._min_limit_s, _FACTOR * (self._rate.estimate_seconds(num_tokens) or 0.0))
