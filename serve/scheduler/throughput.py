"""How fast the replicas of a model work, and so when the next of them will be free. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# How much of what was learnt stays after another batch.
_DECAY = 0.8
# Where a batch takes longer, a replica that is idle between two of them loses next to nothing, and
# who comes meanwhile would wait long behind a batch that was sent ahead.
_SHORT_BATCH_S = 0.1


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch on its way: how long it should take, and when it should be done."""

    expected_seconds: float
    expected_end: float


class ThroughputEstimator:
    """Batches on their way through replicas that do one after another.

    Args:
        lead_s: how long before a replica is expected to be free it may be given its next batch, if
            batches are short.
    """

    def __init__(self, prefetch_s: float) -> None:
        self._prefetch_s = prefetch_s
        self._in_flight: list[InFlightBatch] = []
        self._num_tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long on its replica."""
        self._num_tokens = _DECAY * self._num_tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds

    def estimate_seconds(self, num_tokens: int, num_replicas: int) -> float | None:
        """How long so many replicas take for so many tokens; None if nothing was learnt yet."""
        if not self._num_tokens:
            return None
        return num_tokens * self._seconds / self._num_tokens / num_replicas

    def begin(self, now: float, num_tokens: int, num_replicas: int) -> InFlightBatch:
        """A batch was sent; `end` has to follow."""
        start = now
        if len(self._in_flight) >= num_replicas:
            start = max(now, self._sort_by_end()[len(self._in_flight) - num_replicas].expected_end)
        seconds = self.estimate_seconds(num_tokens, 1)
        seconds = float("inf") if seconds is None else seconds
        ticket = InFlightBatch(seconds, start + seconds)
        self._in_flight.append(ticket)
        return ticket

    def end(self, batch: InFlightBatch) -> None:
        """Its answer came, or will not come."""
        self._in_flight.remove(batch)

    def estimate_wait(self, now: float, num_replicas: int) -> float | None:
        """Seconds until a replica may be given a batch, 0 for now; None: not before an answer."""
        num_behind = len(self._in_flight) - num_replicas
        if num_behind < 0:
            return 0.0
        if num_behind >= num_replicas:  # one is running and one waits at each of them
            return None
        next_done = self._sort_by_end()[num_behind]
        if next_done.expected_seconds > _SHORT_BATCH_S:
            return None
        return max(0.0, next_done.expected_end - self._prefetch_s - now)

    def _sort_by_end(self) -> list[InFlightBatch]:
        return sorted(self._in_flight, key=lambda ticket: ticket.expected_end)
