"""Attention on CUDA by flash-attn, with softcap and window: all three families."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rm_core.attention.base import Scores
from rm_core.attention.varlen import VarlenBackend, VarlenPlan


class FlashAttnBackend(VarlenBackend):
    """`flash_attn.flash_attn_varlen_func` (flash-attn 2.6 and newer), half precision.

    Args:
        kernel: in place of flash-attn's own, for tests.
    """

    def __init__(self, kernel: Callable[..., torch.Tensor] | None = None) -> None:
        if kernel is None:
            from flash_attn import flash_attn_varlen_func

            kernel = flash_attn_varlen_func
        self._kernel = kernel

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
            *self.arguments(plan, query, key, value),
            softmax_scale=scores.scaling,
            causal=True,
            window_size=(-1, -1) if scores.window is None else (scores.window - 1, 0),
            softcap=scores.softcap or 0.0,
        )
