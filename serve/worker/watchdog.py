"""Since when a batch is on a device, and whether that is longer than a healthy one would take.

Kept by whoever owns a device: `serve.worker.worker` in the service, an actor of a job on Ray. Asked
from other threads; the time of a batch is judged by that of the batches before it.
"""

from __future__ import annotations

import time

# Until a batch counts as stuck: so many times what is expected of it, and at least so long. Layers
# that are compiled wait for the compiler whenever a row has a new length.
_FACTOR = 20
_MIN_LIMIT_S = 120.0
_MIN_LIMIT_COMPILED_S = 900.0
# Of one batch to the next, in the mean rate that expectations come from.
_DECAY = 0.9


class BatchWatchdog:
    """The time of the batch that runs.

    Args:
        compiled: whether the model's layers are compiled.
        stuck_after_s: seconds after which a batch that still runs is stuck; None: 20 times what is
            expected of it from the batches before it, at least 120 (900 if compiled).

    Attributes:
        stuck_after_s: as above; may be changed at any time.
    """

    def __init__(self, *, is_compiled: bool, stuck_after_s: float | None = None) -> None:
        self.stuck_after_s = stuck_after_s
        self._min_limit_s = _MIN_LIMIT_COMPILED_S if is_compiled else _MIN_LIMIT_S
        self._running: tuple[float, int] | None = None  # since when, and with how many tokens
        self._tokens, self._seconds = 0.0, 0.0  # of the batches before, the latest count most

    def begin(self, num_tokens: int) -> None:
        """A batch goes to the device; one that was there is done."""
        self.finish()
        self._running = (time.perf_counter(), num_tokens)

    def finish(self) -> None:
        """What was on the device has its rewards."""
        if self._running is not None:
            since, num_tokens = self._running
            self.observe(num_tokens, time.perf_counter() - since)
        self._running = None

    def stop(self) -> None:
        """Nothing is on the device; if something was, its time tells nothing of others."""
        self._running = None

    def observe(self, num_tokens: int, seconds: float) -> None:
        """What a batch took."""
        self._tokens = _DECAY * self._tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds

    def stall_reason(self) -> str | None:
        """What there is to say of a batch that runs for too long; None while all is well."""
        if (running := self._running) is None:
            return None
        since, num_tokens = running
        seconds, limit_s = time.perf_counter() - since, self._compute_limit_s(num_tokens)
        if seconds <= limit_s:
            return None
        return f"a batch of {num_tokens} tokens runs for {seconds:.0f} s (limit: {limit_s:.0f} s)"

    def _compute_limit_s(self, num_tokens: int) -> float:
        if self.stuck_after_s is not None:
            return self.stuck_after_s
        expected_s = num_tokens * self._seconds / max(1.0, self._tokens)
        return max(self._min_limit_s, _FACTOR * expected_s)
