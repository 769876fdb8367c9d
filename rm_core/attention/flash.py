"""Attention on CUDA with flash-attn, including softcap and window: for all three families."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.varlen import VarlenBackend, VarlenChunk


class FlashAttnBackend(VarlenBackend):
    """Backend on `flash_attn.flash_attn_varlen_func` (flash-attn 2.6 and newer), half precision.

    `kernel` replaces flash-attn's kernel in tests.
    """

    def __init__(self, kernel: Callable[..., torch.Tensor] | None = None) -> None:
        if kernel is None:
            from flash_attn import flash_attn_varlen_func

            kernel = flash_attn_varlen_func
        self._kernel = kernel

    def attend_chunk(
        self,
        chunk: VarlenChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `VarlenBackend`."""
        return self._kernel(
            query,
            key,
            value,
            chunk.cu_seqlens_q,
            chunk.cu_seqlens_k,
            chunk.max_seqlen_q,
            chunk.max_seqlen_k,
            softmax_scale=params.scaling,
            causal=True,
            window_size=(-1, -1) if params.window is None else (params.window - 1, 0),
            softcap=params.softcap or 0.0,
        )
