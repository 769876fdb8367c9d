"""How fast the replicas of a model work, and so when the next of them will be free. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# How much of what was learnt stays after another batch.
_MEMORY = 0.8


@dataclass(eq=False, slots=True)
class Ticket:
    """A batch on its way, and when it is expected to be done."""

    expected_end: float


class WorkRate:
    """Batches on their way through replicas that do one after another.

    Args:
        lead_s: how long before a replica is expected to be free it may be given its next batch.
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
            start = max(now, self._ends()[len(self._running) - num_replicas])
        seconds = self.seconds_for(num_tokens, 1)
        ticket = Ticket(float("inf") if seconds is None else start + seconds)
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
        opens_at = self._ends()[num_behind] - self._lead_s
        return None if opens_at == float("inf") else max(0.0, opens_at - now)

    def _ends(self) -> list[float]:
        return sorted(ticket.expected_end for ticket in self._running)
