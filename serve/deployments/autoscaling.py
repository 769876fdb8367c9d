"""How many replicas a model needs, by the tokens that wait for it.

Serve counts requests, and a post of a thousand conversations is one. So gateways tell replicas how
many tokens wait (`Backlog`), replicas tell Serve
(`serve.deployments.replica.ScorerReplica.record_autoscaling_stats`), and Serve's controller asks
`QueuedTokensPolicy`. Neither Ray nor torch here.
"""

from __future__ import annotations

import math
import time
from typing import Any

QUEUED_TOKENS = "queued_tokens"

# A gateway that says nothing any more is gone: it speaks at each batch, the last one with what is
# left behind it.
_REPORT_TTL_S = 60.0


class Backlog:
    """What each gateway said last of the tokens that wait in it."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, int]] = {}

    def update(self, gateway: str, num_tokens: int, now: float | None = None) -> None:
        """Remember what one gateway says.

        Args:
            gateway: a name of its own.
            num_tokens: waiting there for this model.
            now: seconds of `time.monotonic`, for tests.
        """
        self._reports[gateway] = (time.monotonic() if now is None else now, num_tokens)

    def sum_tokens(self, now: float | None = None) -> int:
        """Tokens that wait in all gateways that were heard of lately."""
        now = time.monotonic() if now is None else now
        self._reports = {
            name: (since, tokens)
            for name, (since, tokens) in self._reports.items()
            if now - since <= _REPORT_TTL_S
        }
        return sum(tokens for _, tokens in self._reports.values())


def compute_num_replicas(queued_tokens: float, target_queued_tokens: int) -> int:
    """Replicas so that each has at most the target waiting; at least one."""
    return max(1, math.ceil(queued_tokens / target_queued_tokens))


class QueuedTokensPolicy:
    """Serve's autoscaling policy; Serve keeps to its bounds and delays.

    Args:
        target_queued_tokens: waiting tokens for which one replica is enough.
    """

    def __init__(self, target_queued_tokens: int) -> None:
        self._target = target_queued_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and what to remember (nothing).

        Args:
            context: `ray.serve.config.AutoscalingContext`.
        """
        reports = (context.aggregated_metrics or {}).get(QUEUED_TOKENS) or {}
        if not reports:  # none yet; nothing is known
            return context.target_num_replicas, {}
        # Every replica hears of the same queues: the one that heard last knows best, and the most
        # is the safe side.
        return compute_num_replicas(max(reports.values()), self._target), {}
