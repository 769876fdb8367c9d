"""Attention on CUDA with FlashAttention-2 and FlashAttention-4, including softcap and window."""

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


class FlashAttn4Backend(VarlenBackend):
    """Backend on `flash_attn.cute.interface.flash_attn_varlen_func`, half precision.

    It is for newer GPUs and written in CuTe. The wheel contains no binaries: its kernels are
    compiled for the GPU when the backend is checked. `kernel` replaces the kernel in tests.
    """

    def __init__(self, kernel: Callable[..., tuple[torch.Tensor, ...]] | None = None) -> None:
        if kernel is None:
            from flash_attn.cute.interface import flash_attn_varlen_func

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
        # By keyword: unlike in FlashAttention-2, other tensors come between these parameters.
        output, *_ = self._kernel(
            q=query,
            k=key,
            v=value,
            cu_seqlens_q=chunk.cu_seqlens_q,
            cu_seqlens_k=chunk.cu_seqlens_k,
            max_seqlen_q=chunk.max_seqlen_q,
            max_seqlen_k=chunk.max_seqlen_k,
            softmax_scale=params.scaling,
            causal=True,
            window_size=(None if params.window is None else params.window - 1, 0),
            softcap=params.softcap or 0.0,
        )
        return output
