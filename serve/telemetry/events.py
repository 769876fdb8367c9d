"""What the queue of a model reports to the metrics. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RetryReason = Literal["replica_lost", "replica_unhealthy", "overloaded"]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Facts about one scored batch.

    Attributes:
        model: alias of the model.
        num_sequences: number of distinct conversations in the batch.
        num_tokens: tokens of all conversations.
        num_computed_tokens: tokens that went through the model; shared prefixes count once.
        max_batch_tokens: the token budget.
        queue_durations_s: seconds that each conversation of each request was queued.
        inference_s: seconds on the replica's device.
        elapsed_s: seconds from the dispatch of the batch to the arrival of its rewards.
    """

    model: str
    num_sequences: int
    num_tokens: int
    num_computed_tokens: int
    max_batch_tokens: int
    queue_durations_s: tuple[float, ...]
    inference_s: float
    elapsed_s: float
