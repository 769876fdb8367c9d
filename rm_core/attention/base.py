"""What every attention backend offers. A batch is planned once and attended to in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rm_core.attention.segments import Segment


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """How a layer turns queries and keys into attention scores.

    Attributes:
        scaling: factor of the products.
        softcap: scores are `softcap * tanh(score / softcap)`; None for as they are.
        window: a query sees this many positions, itself among them; None for all before it.
    """

    scaling: float
    softcap: float | None = None
    window: int | None = None


class AttentionBackend(Protocol):
    """One way to compute attention over the segments of a row."""

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> Any:
        """What `attend` needs to know of a batch, the same for every layer.

        Args:
            segments: in the order of the queries, which they cover without a gap.
            num_keys: length of the row.
            device: where the tensors are.
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
        """Attention of every query.

        Args:
            plan: of the batch.
            query: `[num_queries, num_heads, head_dim]`.
            key: `[num_keys, num_key_value_heads, head_dim]`, in the order of the row.
            value: as `key`.
            scores: of the layer.

        Returns:
            `[num_queries, num_heads, head_dim]`, in the dtype of `query`.
        """
        ...
