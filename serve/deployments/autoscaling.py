"""Autoscaling of a model's replicas by queued tokens.

Serve counts requests, and a request with a thousand conversations counts as one. So gateways report
their queued tokens to replicas (`serve.deployments.replica.Backlog`), replicas report them to Serve
(`ScorerReplica.record_autoscaling_stats`), and Serve's controller calls `QueuedTokensPolicy`. This
module imports neither Ray nor torch.
"""

from __future__ import annotations

import math
from typing import Any

QUEUED_TOKENS = "queued_tokens"


def compute_num_replicas(queued_tokens: float, target_queued_tokens: int) -> int:
    """Return the number of replicas with at most the target queued for each; at least one."""
    return max(1, math.ceil(queued_tokens / target_queued_tokens))


class QueuedTokensPolicy:
    """Autoscaling policy for Serve, which applies its own bounds and delays."""

    def __init__(self, target_queued_tokens: int) -> None:
        self._target = target_queued_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and an empty state, for an `AutoscalingContext`."""
        reports = (context.aggregated_metrics or {}).get(QUEUED_TOKENS) or {}
        if not reports:  # no replica has reported yet
            return context.target_num_replicas, {}
        # All replicas hear of the same queues, at different times; the largest number is the safe
        # choice.
        return compute_num_replicas(max(reports.values()), self._target), {}
