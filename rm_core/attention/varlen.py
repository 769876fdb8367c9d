"""Base of the backends on variable-length kernels: each segment is a separate sequence.

Keys and values are gathered into the order of the conversations once per layer, so that each
segment is a sequence with fewer queries than keys. The kernels then align their causal mask at the
end, as a segment requires, and count the window in positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.attention.segments import Segment
from rm_core.device_copy import copy_to_device


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Boundaries of the segments, and indices of their keys.

    Attributes:
        cu_seqlens_q: int32 `[num_segments + 1]`, start of each segment's queries.
        cu_seqlens_k: int32 `[num_segments + 1]`, start of each segment's gathered keys.
        max_seqlen_q: largest number of queries in a segment.
        max_seqlen_k: largest number of keys in a segment.
        gather_indices: int64 `[num_gathered]`, indices of the keys of the batch; None if they
            are in the right order.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    gather_indices: torch.Tensor | None


class VarlenBackend:
    """Base class of the backends on variable-length kernels."""

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenPlan:
        """See `AttentionBackend`."""
        queries = [segment.num_queries for segment in segments]
        keys = [segment.num_keys for segment in segments]
        slices = [key_slice for segment in segments for key_slice in segment.keys]
        neighbors = itertools.pairwise([(0, 0), *slices, (num_keys, 0)])
        gather_indices = None
        # Gather the keys unless the slices are all keys, in their order.
        if not all(before[1] == after[0] for before, after in neighbors):
            indices = torch.cat([torch.arange(start, stop) for start, stop in slices])
            gather_indices = copy_to_device(indices, device)
        return VarlenPlan(
            _build_cu_seqlens(queries, device),
            _build_cu_seqlens(keys, device),
            max(queries),
            max(keys),
            gather_indices,
        )

    def gather_keys(
        self, plan: VarlenPlan, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values in segment order."""
        if plan.gather_indices is None:
            return key, value
        return key.index_select(0, plan.gather_indices), value.index_select(0, plan.gather_indices)

    def build_arguments(
        self, plan: VarlenPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[Any, ...]:
        """Return the kernel's positional arguments, with keys and values in segment order."""
        key, value = self.gather_keys(plan, key, value)
        boundaries = plan.cu_seqlens_q, plan.cu_seqlens_k
        return query, key, value, *boundaries, plan.max_seqlen_q, plan.max_seqlen_k


def _build_cu_seqlens(lengths: list[int], device: torch.device) -> torch.Tensor:
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return copy_to_device(starts, device)
