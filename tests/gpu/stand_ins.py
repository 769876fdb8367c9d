"""In place of the CUDA kernels in a dry run: functions with their signatures, written out.

They do what the kernels' documentation says and no more, on any device.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any
from unittest import mock

import torch

from rm_core.attention import Backend, make_backend
from rm_core.attention.flash import FlashAttnBackend
from rm_core.attention.flex import FlexBackend
from rm_core.attention.torch_varlen import TorchVarlenBackend


def stand_in(name: str, deterministic: bool) -> Backend:
    """The backend of a name on a kernel that runs anywhere."""
    match name:
        case "varlen":
            return TorchVarlenBackend(deterministic, torch_kernel)
        case "flash_attention_2":
            return FlashAttnBackend(flash_kernel)
        case "flex":
            return FlexBackend(flex_kernel)
    return make_backend(name, deterministic)


def torch_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
    num_splits: int | None = None,
) -> torch.Tensor:
    """As `torch.nn.attention.varlen.varlen_attn`."""
    assert window_size[1] == 0
    return _varlen((query, key, value), (cu_seq_q, cu_seq_k), scale, window_size[0], 0.0)


def flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """As `flash_attn.flash_attn_varlen_func`."""
    assert causal
    starts = cu_seqlens_q, cu_seqlens_k
    return _varlen((query, key, value), starts, softmax_scale, window_size[0], softcap)


def flex_kernel(*tensors: torch.Tensor, **options: Any) -> Any:
    """`flex_attention` as it is, without a compiler."""
    from torch.nn.attention import flex_attention as flex

    with (
        warnings.catch_warnings(),
        mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, create=True),
    ):
        warnings.simplefilter("ignore")  # that it is not compiled
        return flex.flex_attention(*tensors, **options)


def _varlen(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    left: int,
    softcap: float,
) -> torch.Tensor:
    """Causal, aligned at the end; a query sees `left` keys before its own, or all for -1."""
    query, key, value = tensors
    assert {start.dtype for start in starts} == {torch.int32}
    out = torch.empty_like(query)
    queries, keys = (list(itertools.pairwise(start.tolist())) for start in starts)
    for (q, q_end), (k, k_end) in zip(queries, keys, strict=True):
        shared = query.shape[1] // key.shape[1]
        ours = key[k:k_end].repeat_interleave(shared, 1).float()
        weights = torch.einsum("qhd,khd->hqk", query[q:q_end].float(), ours) * scale
        if softcap:
            weights = softcap * torch.tanh(weights / softcap)
        key_at = torch.arange(k_end - k)
        query_at = key_at[-(q_end - q) :].unsqueeze(1)
        hidden = key_at > query_at
        if left >= 0:
            hidden |= key_at < query_at - left
        weights = weights.masked_fill(hidden, float("-inf")).softmax(-1)
        ours = value[k:k_end].repeat_interleave(shared, 1).float()
        out[q:q_end] = torch.einsum("hqk,khd->qhd", weights, ours).to(out.dtype)
    return out
