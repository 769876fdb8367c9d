"""Interface of the attention backends. A batch is planned once and attended to in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rm_core.attention.segments import Segment


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """How a layer computes attention scores from queries and keys."""

    scaling: float  # factor of the products
    # Scores become `softcap * tanh(score / softcap)`; None leaves them unchanged.
    softcap: float | None = None
    # Number of positions that a query sees, its own included; None for all positions up to its own.
    window: int | None = None


class AttentionBackend(Protocol):
    """Computes attention over the segments of a row."""

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> Any:
        """Prepare what `attend` needs for a batch; the plan is the same for every layer.

        Args:
            segments: segments in the order of the queries, which they cover without gaps.
            num_keys: number of keys: those from the prefix cache, then those of the row.
            device: device of the tensors.
        """
        ...

    def attend(
        self,
        plan: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Compute the attention of every query.

        Args:
            plan: plan of the batch.
            query: `[num_queries, num_heads, head_dim]`.
            key: `[num_keys, num_key_value_heads, head_dim]`, in the order of the plan.
            value: same shape and order as `key`.
            params: attention parameters of the layer.

        Returns:
            `[num_queries, num_heads, head_dim]`, in the dtype of `query`.
        """
        ...
