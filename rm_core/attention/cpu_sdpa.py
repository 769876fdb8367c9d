"""Attention on CPUs without a compiler: SDPA's kernel, in blocks merged by their log-sum-exp.

Attention of a segment to its own tokens is causal, which the kernel supports at full speed.
Attention to ancestors needs no mask, and all segments under one ancestor share one call. A mask
would halve the kernel's rate. Blocks are merged as in FlashAttention (Dao et al., 2022, section
3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Slices of queries and of the keys that they attend to."""

    queries: slice
    keys: slice


@dataclass(frozen=True, slots=True)
class CpuSdpaPlan:
    """Blocks of a batch."""

    # Causal blocks, one for each segment; they cover the queries in order.
    own: list[AttentionBlock]
    ancestors: list[AttentionBlock]  # blocks without a mask, one for each ancestor


class CpuSdpaBackend:
    """SDPA backend for CPUs, see `AttentionBackend`. Supports neither softcap nor window.

    Args:
        kernel_failure: why the faster kernel of `cpu_kernel` is not used.
    """

    def __init__(self, kernel_failure: str = "") -> None:
        self.kernel_failure = kernel_failure

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> CpuSdpaPlan:
        """See `AttentionBackend`."""
        own = [AttentionBlock(slice(s.start, s.stop), slice(*s.keys[-1])) for s in segments]
        # The queries that see an ancestor are contiguous.
        queries_by_ancestor: dict[tuple[int, int], slice] = {}
        for segment in segments:
            for ancestor in segment.keys[:-1]:
                queries = queries_by_ancestor.get(ancestor, slice(segment.start, segment.start))
                assert queries.stop == segment.start
                queries_by_ancestor[ancestor] = slice(queries.start, segment.stop)
        ancestors = [
            AttentionBlock(queries, slice(*keys)) for keys, queries in queries_by_ancestor.items()
        ]
        return CpuSdpaPlan(own, ancestors)

    def attend(
        self,
        plan: CpuSdpaPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        assert params.softcap is None
        assert params.window is None

        def attend_block(block: AttentionBlock, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            """Return output `[queries, heads, head_dim]`, log-sum-exp `[queries, heads, 1]`."""
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(
                    tensor[rows].transpose(0, 1).unsqueeze(0)
                    for tensor, rows in (
                        (query, block.queries),
                        (key, block.keys),
                        (value, block.keys),
                    )
                ),
                is_causal=causal,
                scale=params.scaling,
            )
            return out[0].transpose(0, 1), lse[0].transpose(0, 1).unsqueeze(-1)

        # A single query sees all keys of its block, unlike with the kernel's causal mask.
        own = [
            attend_block(block, causal=block.queries.stop - block.queries.start > 1)
            for block in plan.own
        ]
        if len(own) == 1 and not plan.ancestors:
            return own[0][0]
        out = torch.cat([out for out, _ in own])
        lse = torch.cat([lse for _, lse in own])
        for block in plan.ancestors:
            block_out, block_lse = attend_block(block, causal=False)
            merged_lse = lse[block.queries]
            weight = torch.sigmoid(block_lse - merged_lse).to(out.dtype)
            out[block.queries].lerp_(block_out, weight)
            lse[block.queries] = torch.logaddexp(merged_lse, block_lse)
        return out
