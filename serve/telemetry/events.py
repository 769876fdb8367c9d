"""What the queue of a model tells whoever counts. Pure data; the counting is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

RetryReason = Literal["replica_lost", "replica_unhealthy", "overloaded"]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch that came back.

    Attributes:
        model: alias of the model.
        num_sequences: distinct conversations in it.
        num_tokens: of all of them.
        num_computed_tokens: that went through the model, what they share counted once.
        max_batch_tokens: the budget of a batch.
        waited_s: seconds that each conversation of each request waited for it.
        inference_s: seconds on the replica's device.
        elapsed_s: seconds from sending it to its answer.
    """

    model: str
    num_sequences: int
    num_tokens: int
    num_computed_tokens: int
    max_batch_tokens: int
    queue_durations_s: tuple[float, ...]
    inference_s: float
    elapsed_s: float


class Observer(Protocol):
    """Told of what happens to the batches of a model."""

    def record_batch(self, report: BatchReport) -> None:
        """A batch came back."""
        ...

    def record_retry(self, model: str, reason: RetryReason, num_sequences: int) -> None:
        """Conversations are sent once more."""
        ...

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        """Conversations are not sent once more: each lost its replica twice."""
        ...


class NullObserver:
    """An observer that looks away."""

    def record_batch(self, report: BatchReport) -> None:
        """See `Observer`."""

    def record_retry(self, model: str, reason: RetryReason, num_sequences: int) -> None:
        """See `Observer`."""

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        """See `Observer`."""
