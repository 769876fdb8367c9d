"""Attention on CUDA with `varlen_attn`, torch's built-in FlashAttention-2: no softcap."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.attention

from rm_core.attention.base import AttentionParams
from rm_core.attention.varlen import VarlenBackend, VarlenChunk


class TorchVarlenBackend(VarlenBackend):
    """Backend on `torch.nn.attention.varlen.varlen_attn` (torch 2.11 and newer).

    Supports half precision only, and no softcap.

    Args:
        deterministic: whether to never split the keys of a segment among blocks, so that the
            result does not depend on the rest of the batch.
        kernel: replacement for torch's kernel, for tests.
    """

    def __init__(
        self, deterministic: bool = False, kernel: Callable[..., Any] | None = None
    ) -> None:
        if kernel is None:
            from torch.nn.attention.varlen import varlen_attn

            kernel = varlen_attn
        self._kernel: Callable[..., Any] = kernel
        # Newer releases need `enable_gqa` for grouped heads and have `num_splits`. Older releases
        # have neither parameter, accept grouped heads without it and never split.
        supported = inspect.signature(kernel).parameters
        options: dict[str, Any] = {"enable_gqa": True}
        if deterministic and _may_split():
            options["num_splits"] = 1
        self._options = {name: value for name, value in options.items() if name in supported}

    def attend_chunk(
        self,
        chunk: VarlenChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `VarlenBackend`."""
        assert params.softcap is None
        out: torch.Tensor = self._kernel(
            query,
            key,
            value,
            chunk.cu_seqlens_q,
            chunk.cu_seqlens_k,
            chunk.max_seqlen_q,
            chunk.max_seqlen_k,
            scale=params.scaling,
            window_size=(-1 if params.window is None else params.window - 1, 0),
            **self._options,
        )
        return out


def _may_split() -> bool:
    """Return whether a FlashAttention other than torch's own version 2 has been activated.

    Version 2 does not split keys for more than one query, and some releases of torch reject
    `num_splits` with it.
    """
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() is not None
