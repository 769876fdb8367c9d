"""What the variable-length kernels share: segments as sequences of their own.

Keys and values are gathered into the conversations' order once per layer, so that each segment is
a sequence with fewer queries than keys. The kernels align their causal mask at the end then, which
is what a segment needs, and count the window in positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.attention.segments import Segment


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Boundaries of the segments, and where their keys are.

    Attributes:
        cu_seqlens_q: int32 `[num_segments + 1]`, where each segment's queries start.
        cu_seqlens_k: int32 `[num_segments + 1]`, where each segment's gathered keys start.
        max_seqlen_q: most queries of a segment.
        max_seqlen_k: most keys of a segment.
        gather: int64 `[num_gathered]`, places of the keys in the row; None if it is the row.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    gather_indices: torch.Tensor | None


class VarlenBackend:
    """What the backends on such kernels have in common."""

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenPlan:
        """See `rm_core.attention.base.Backend`."""
        queries = [segment.num_queries for segment in segments]
        keys = [segment.num_keys for segment in segments]
        slices = [part for segment in segments for part in segment.keys]
        edges = itertools.pairwise([(0, 0), *slices, (num_keys, 0)])
        gather = None
        if not all(before[1] == after[0] for before, after in edges):  # the row is not the order
            places = torch.cat([torch.arange(start, stop) for start, stop in slices])
            gather = places.to(device, non_blocking=True)
        return VarlenPlan(
            _build_cu_seqlens(queries, device),
            _build_cu_seqlens(keys, device),
            max(queries),
            max(keys),
            gather,
        )

    def build_arguments(
        self, plan: VarlenPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[Any, ...]:
        """What every such kernel takes by position, keys and values in the segments' order."""
        if plan.gather_indices is not None:
            key, value = (tensor.index_select(0, plan.gather_indices) for tensor in (key, value))
        boundaries = plan.cu_seqlens_q, plan.cu_seqlens_k
        return query, key, value, *boundaries, plan.max_seqlen_q, plan.max_seqlen_k


def _build_cu_seqlens(lengths: list[int], device: torch.device) -> torch.Tensor:
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return starts.to(device, non_blocking=True)
