"""Autoscaling of a model's replicas by queued tokens.

Serve counts requests, and a request with a thousand conversations counts as one. So gateways report
their queued tokens to replicas (`Backlog`), replicas report them to Serve
(`serve.deployments.replica.ScorerReplica.record_autoscaling_stats`), and Serve's controller calls
`QueuedTokensPolicy`. This module imports neither Ray nor torch.
"""

from __future__ import annotations

import math
import time
from typing import Any

QUEUED_TOKENS = "queued_tokens"

# A gateway reports with each batch, also what is queued behind its last one. A gateway that has not
# reported for so long is gone.
_REPORT_TTL_S = 60.0


class Backlog:
    """Last report of each gateway on its queued tokens."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, int]] = {}

    def update(self, gateway: str, num_tokens: int, now: float | None = None) -> None:
        """Record the report of one gateway.

        Args:
            gateway: unique name of the gateway.
            num_tokens: number of tokens queued there for this model.
            now: time of `time.monotonic` in seconds, for tests.
        """
        self._reports[gateway] = (time.monotonic() if now is None else now, num_tokens)

    def sum_tokens(self, now: float | None = None) -> int:
        """Sum the queued tokens of all gateways that reported recently."""
        now = time.monotonic() if now is None else now
        self._reports = {
            name: (reported_at, num_tokens)
            for name, (reported_at, num_tokens) in self._reports.items()
            if now - reported_at <= _REPORT_TTL_S
        }
        return sum(num_tokens for _, num_tokens in self._reports.values())


def compute_num_replicas(queued_tokens: float, target_queued_tokens: int) -> int:
    """Return the number of replicas with at most the target queued for each; at least one."""
    return max(1, math.ceil(queued_tokens / target_queued_tokens))


class QueuedTokensPolicy:
    """Autoscaling policy for Serve, which applies its own bounds and delays.

    Args:
        target_queued_tokens: number of queued tokens for which one replica is enough.
    """

    def __init__(self, target_queued_tokens: int) -> None:
        self._target = target_queued_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and an empty state.

        Args:
            context: `ray.serve.config.AutoscalingContext`.
        """
        reports = (context.aggregated_metrics or {}).get(QUEUED_TOKENS) or {}
        if not reports:  # no replica has reported yet
            return context.target_num_replicas, {}
        # All replicas hear of the same queues, at different times; the largest number is the safe
        # choice.
        return compute_num_replicas(max(reports.values()), self._target), {}
