"""What the variable-length kernels share: segments as sequences of their own.

Keys and values are gathered into the conversations' order once per layer, so that each segment is
a sequence with fewer queries than keys. The kernels align their causal mask at the end then, which
is what a segment needs, and count the window in positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    gather: torch.Tensor | None


def plan_varlen(segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenPlan:
    """See `rm_core.attention.backend.Backend.plan`."""
    queries = [segment.num_queries for segment in segments]
    keys = [segment.num_keys for segment in segments]
    slices = [part for segment in segments for part in segment.keys]
    in_order = all(a[1] == b[0] for a, b in itertools.pairwise([(0, 0), *slices, (num_keys, 0)]))
    gather = None
    if not in_order:
        places = torch.cat([torch.arange(start, stop) for start, stop in slices])
        gather = places.to(device, non_blocking=True)

    def boundaries(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(
            device, non_blocking=True
        )

    return VarlenPlan(boundaries(queries), boundaries(keys), max(queries), max(keys), gather)


def gathered(plan: VarlenPlan, tensor: torch.Tensor) -> torch.Tensor:
    """Keys or values `[num_keys, heads, head_dim]` in the order of the segments."""
    return tensor if plan.gather is None else tensor.index_select(0, plan.gather)
