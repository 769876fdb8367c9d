"""Attention on CPUs: the kernel of SDPA without any mask, in parts merged by their log-sum-exp.

A segment's own tokens are causal, which the kernel does at full speed; its ancestors are seen
without a mask, and stretches of segments under one ancestor in one call. A mask would halve the
kernel's rate. Parts are merged as FlashAttention merges blocks (Dao et al., 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries and keys that see each other, as slices."""

    queries: slice
    keys: slice


@dataclass(frozen=True, slots=True)
class CpuSdpaPlan:
    """`own` covers the queries in order and is causal, `ancestors` is without a mask."""

    own: list[AttentionBlock]
    ancestors: list[AttentionBlock]


class CpuSdpaBackend:
    """See `rm_core.attention.base.Backend`. Knows neither softcap nor window."""

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> CpuSdpaPlan:
        """See `Backend`."""
        own = [AttentionBlock(slice(s.start, s.stop), slice(*s.keys[-1])) for s in segments]
        seen_by: dict[tuple[int, int], slice] = {}  # what sees an ancestor stands in one piece
        for segment in segments:
            for ancestor in segment.keys[:-1]:
                so_far = seen_by.get(ancestor, slice(segment.start, segment.start))
                assert so_far.stop == segment.start
                seen_by[ancestor] = slice(so_far.start, segment.stop)
        ancestors = [AttentionBlock(queries, slice(*keys)) for keys, queries in seen_by.items()]
        return CpuSdpaPlan(own, ancestors)

    def attend(
        self,
        plan: CpuSdpaPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `Backend`."""
        assert params.softcap is None
        assert params.window is None

        def attend(part: AttentionBlock, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            """Output `[queries, heads, head_dim]` and log-sum-exp `[queries, heads, 1]`."""
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(
                    tensor[rows].transpose(0, 1).unsqueeze(0)
                    for tensor, rows in (
                        (query, part.queries),
                        (key, part.keys),
                        (value, part.keys),
                    )
                ),
                is_causal=causal,
                scale=params.scaling,
            )
            return out[0].transpose(0, 1), lse[0].transpose(0, 1).unsqueeze(-1)

        # A single query sees all keys of its part, which is not what the kernel's causal mask does.
        parts = [attend(p, p.queries.stop - p.queries.start > 1) for p in plan.own]
        if len(parts) == 1 and not plan.ancestors:
            return parts[0][0]
        out = torch.cat([out for out, _ in parts])
        lse = torch.cat([lse for _, lse in parts])
        for part in plan.ancestors:
            part_out, part_lse = attend(part, causal=False)
            so_far = lse[part.queries]
            weight = torch.sigmoid(part_lse - so_far).to(out.dtype)
            out[part.queries].lerp_(part_out, weight)
            lse[part.queries] = torch.logaddexp(so_far, part_lse)
        return out
