"""How fast the replicas of a model work, and so when the next of them will be free. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# How much of what was learnt stays after another batch.
_MEMORY = 0.8
# Where a batch takes longer, a replica that is idle between two of them loses next to nothing, and
# who comes meanwhile would wait long behind a batch that was sent ahead.
_SHORT_S = 0.1


@dataclass(eq=False, slots=True)
class Ticket:
    """A batch on its way: how long it should take, and when it should be done."""

    seconds: float
    expected_end: float


class WorkRate:
    """Batches on their way through replicas that do one after another.

    Args:
        lead_s: how long before a replica is expected to be free it may be given its next batch, if
            batches are short.
    """

    def __init__(self, lead_s: float) -> None:
        self._lead_s = lead_s
        self._running: list[Ticket] = []
        self._num_tokens = 0.0
        self._seconds = 0.0

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long on its replica."""
        self._num_tokens = _MEMORY * self._num_tokens + num_tokens
        self._seconds = _MEMORY * self._seconds + seconds

    def seconds_for(self, num_tokens: int, num_replicas: int) -> float | None:
        """How long so many replicas take for so many tokens; None if nothing was learnt yet."""
        if not self._num_tokens:
            return None
        return num_tokens * self._seconds / self._num_tokens / num_replicas

    def begin(self, now: float, num_tokens: int, num_replicas: int) -> Ticket:
        """A batch was sent; `end` has to follow."""
        start = now
        if len(self._running) >= num_replicas:
            start = max(now, self._by_end()[len(self._running) - num_replicas].expected_end)
        seconds = self.seconds_for(num_tokens, 1)
        seconds = float("inf") if seconds is None else seconds
        ticket = Ticket(seconds, start + seconds)
        self._running.append(ticket)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """Its answer came, or will not come."""
        self._running.remove(ticket)

    def free_in(self, now: float, num_replicas: int) -> float | None:
        """Seconds until a replica may be given a batch, 0 for now; None: not before an answer."""
        num_behind = len(self._running) - num_replicas
        if num_behind < 0:
            return 0.0
        if num_behind >= num_replicas:  # one is running and one waits at each of them
            return None
        next_done = self._by_end()[num_behind]
        if next_done.seconds > _SHORT_S:
            return None
        return max(0.0, next_done.expected_end - self._lead_s - now)

    def _by_end(self) -> list[Ticket]:
        return sorted(self._running, key=lambda ticket: ticket.expected_end)
