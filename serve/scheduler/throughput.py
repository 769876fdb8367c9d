"""Estimates how fast a model's replicas work, and when the next of them is free. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from serve.worker.watchdog import RateEstimator

# If batches take longer, a replica that is idle between two of them loses next to nothing, and a
# request that arrives meanwhile would wait long behind a batch that was sent ahead.
_SHORT_BATCH_S = 0.1


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch in flight: how long it should take, and when it should be done."""

    expected_seconds: float
    expected_end: float


class ThroughputEstimator:
    """Tracks batches in flight through replicas that run one batch after another.

    Args:
        prefetch_s: how many seconds before a replica is expected to be free it may get its next
            batch, if batches are short.

    Attributes:
        rate: rate of one replica.
    """

    def __init__(self, prefetch_s: float) -> None:
        self._prefetch_s = prefetch_s
        self._in_flight: list[InFlightBatch] = []
        self.rate = RateEstimator(decay=0.8)

    def begin(self, now: float, num_tokens: int, num_replicas: int) -> InFlightBatch:
        """Record that a batch was sent; `end` has to follow."""
        start = now
        if len(self._in_flight) >= num_replicas:
            start = max(now, self._sort_by_end()[len(self._in_flight) - num_replicas].expected_end)
        seconds = self.rate.estimate_seconds(num_tokens)
        seconds = float("inf") if seconds is None else seconds
        batch = InFlightBatch(seconds, start + seconds)
        self._in_flight.append(batch)
        return batch

    def end(self, batch: InFlightBatch) -> None:
        """Record that the result of a batch arrived, or will not arrive."""
        self._in_flight.remove(batch)

    def estimate_wait(
        self, now: float, num_replicas: int, *, may_prefetch: bool = True
    ) -> float | None:
        """Estimate the seconds until a replica may get a batch; None: not before a result.

        Args:
            now: time of the event loop.
            num_replicas: number of replicas that are up.
            may_prefetch: whether a replica may get a batch shortly before it is free.
        """
        num_waiting = len(self._in_flight) - num_replicas
        if num_waiting < 0:
            return 0.0
        # At most, one batch runs and one waits at each replica.
        if num_waiting >= num_replicas or not may_prefetch:
            return None
        next_done = self._sort_by_end()[num_waiting]
        if next_done.expected_seconds > _SHORT_BATCH_S:
            return None
        return max(0.0, next_done.expected_end - self._prefetch_s - now)

    def _sort_by_end(self) -> list[InFlightBatch]:
        return sorted(self._in_flight, key=lambda batch: batch.expected_end)
