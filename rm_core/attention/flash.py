"""Attention on CUDA by flash-attn, with softcap and window: all three families."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rm_core.attention.backend import Scores
from rm_core.attention.segments import Segment
from rm_core.attention.varlen import VarlenPlan, gathered, plan_varlen


class FlashAttnBackend:
    """`flash_attn.flash_attn_varlen_func` (flash-attn 2.6 and newer), half precision.

    Args:
        kernel: in place of flash-attn's own, for tests.
    """

    def __init__(self, kernel: Callable[..., torch.Tensor] | None = None) -> None:
        if kernel is None:
            from flash_attn import flash_attn_varlen_func

            kernel = flash_attn_varlen_func
        self._kernel = kernel

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenPlan:
        """See `Backend`."""
        return plan_varlen(segments, num_keys, device)

    def attend(
        self,
        plan: VarlenPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """See `Backend`."""
        return self._kernel(
            query,
            gathered(plan, key),
            gathered(plan, value),
            plan.cu_seqlens_q,
            plan.cu_seqlens_k,
            plan.max_seqlen_q,
            plan.max_seqlen_k,
            softmax_scale=scores.scaling,
            causal=True,
            window_size=(-1, -1) if scores.window is None else (scores.window - 1, 0),
            softcap=scores.softcap or 0.0,
        )
