"""Attention on CUDA by `varlen_attn`, the FlashAttention-2 inside torch: no softcap."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.attention

from rm_core.attention.base import AttentionParams
from rm_core.attention.varlen import VarlenBackend, VarlenPlan


class TorchVarlenBackend(VarlenBackend):
    """`torch.nn.attention.varlen.varlen_attn` (torch 2.11 and newer), half precision, no softcap.

    Args:
        deterministic: never split the keys of a segment among blocks, so that the result does not
            depend on the rest of the batch.
        kernel: in place of torch's own, for tests.
    """

    def __init__(
        self, deterministic: bool = False, kernel: Callable[..., Any] | None = None
    ) -> None:
        if kernel is None:
            from torch.nn.attention.varlen import varlen_attn

            kernel = varlen_attn
        self._kernel: Callable[..., Any] = kernel
        # Newer releases want to be told of grouped heads and offer splits; older ones have neither
        # name, take grouped heads as they are and never split.
        offered = inspect.signature(kernel).parameters
        wanted: dict[str, Any] = {"enable_gqa": True}
        if deterministic and _may_split():
            wanted["num_splits"] = 1
        self._options = {name: value for name, value in wanted.items() if name in offered}

    def attend(
        self,
        plan: VarlenPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `Backend`."""
        assert params.softcap is None
        out: torch.Tensor = self._kernel(
            *self.build_arguments(plan, query, key, value),
            scale=params.scaling,
            window_size=(-1 if params.window is None else params.window - 1, 0),
            **self._options,
        )
        return out


def _may_split() -> bool:
    """Whether a FlashAttention other than torch's own version 2 has been activated.

    Version 2 does not split the keys of more than one query, and some releases of torch refuse to
    be told not to.
    """
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() is not None
