"""Replacements of the CUDA kernels, with the same signatures, in plain torch operations.

The functions follow the kernels' documentation, on any device: for the dry run, and for tests of
the arguments that the backends pass.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any
from unittest import mock

import torch

from rm_core.attention import AttentionBackend, make_backend
from rm_core.attention.flash import FlashAttn4Backend, FlashAttnBackend
from rm_core.attention.flex import FlexBackend
from rm_core.attention.torch_varlen import TorchVarlenBackend


def make_fake_backend(name: str, deterministic: bool) -> AttentionBackend:
    """Create a backend by name, on a kernel that runs on any device."""
    match name:
        case "varlen":
            return TorchVarlenBackend(deterministic, torch_kernel)
        case "flash_attention_2":
            return FlashAttnBackend(flash_kernel)
        case "flash_attention_4":
            return FlashAttn4Backend(flash_4_kernel)
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
    enable_gqa: bool,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Compute the result of `torch.nn.attention.varlen.varlen_attn`."""
    assert enable_gqa
    assert cu_seq_q is not cu_seq_k  # newer releases use another kernel if they are one tensor
    left, right = window_size
    assert right == 0
    _check_bounds((query, key), (cu_seq_q, cu_seq_k), (max_q, max_k))
    return _varlen((query, key, value), (cu_seq_q, cu_seq_k), scale, left, 0.0)


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
    """Compute the result of `flash_attn.flash_attn_varlen_func`."""
    assert causal
    left, right = window_size
    assert right in (-1, 0)
    starts = cu_seqlens_q, cu_seqlens_k
    _check_bounds((query, key), starts, (max_seqlen_q, max_seqlen_k))
    return _varlen((query, key, value), starts, softmax_scale, left, softcap)


def flash_4_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    qv: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: int | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    gather_kv_indices: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: torch.Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
) -> tuple[torch.Tensor, None]:
    """Compute the result of `flash_attn.cute.interface.flash_attn_varlen_func`."""
    unused = (qv, min_seqlen_k, seqused_q, seqused_k, gather_kv_indices, page_table, learnable_sink)
    assert all(argument is None for argument in unused)
    assert causal
    assert softmax_scale is not None
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    assert max_seqlen_q is not None
    assert max_seqlen_k is not None
    left, right = window_size
    assert right == 0
    assert left is None or left >= 0
    starts = cu_seqlens_q, cu_seqlens_k
    _check_bounds((q, k), starts, (max_seqlen_q, max_seqlen_k))
    return _varlen((q, k, v), starts, softmax_scale, -1 if left is None else left, softcap), None


def flex_kernel(*tensors: torch.Tensor, **options: Any) -> Any:
    """Call `flex_attention` without compiling it."""
    from torch.nn.attention import flex_attention as flex

    with (
        warnings.catch_warnings(),
        mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, create=True),
    ):
        warnings.simplefilter("ignore")  # the warning that the kernel is not compiled
        return flex.flex_attention(*tensors, **options)


def _check_bounds(
    rows: tuple[torch.Tensor, torch.Tensor],
    starts: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
) -> None:
    for row, start, max_length in zip(rows, starts, longest, strict=True):
        assert start.dtype == torch.int32
        bounds = start.tolist()
        assert (bounds[0], bounds[-1]) == (0, len(row))
        assert max_length == max(b - a for a, b in itertools.pairwise(bounds))


def _varlen(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    left: int,
    softcap: float,
) -> torch.Tensor:
    """Compute causal attention, aligned at the end.

    A query sees `left` keys before its own, or all keys before its own for -1.
    """
    query, key, value = tensors
    out = torch.empty_like(query)
    queries, keys = (list(itertools.pairwise(start.tolist())) for start in starts)
    for (q, q_end), (k, k_end) in zip(queries, keys, strict=True):
        shared = query.shape[1] // key.shape[1]
        segment_keys = key[k:k_end].repeat_interleave(shared, 1).double()
        weights = torch.einsum("qhd,khd->hqk", query[q:q_end].double(), segment_keys) * scale
        if softcap:
            weights = softcap * torch.tanh(weights / softcap)
        key_at = torch.arange(k_end - k)
        query_at = key_at[-(q_end - q) :].unsqueeze(1)
        hidden = key_at > query_at
        if left >= 0:
            hidden |= key_at < query_at - left
        weights = weights.masked_fill(hidden, float("-inf")).softmax(-1)
        segment_values = value[k:k_end].repeat_interleave(shared, 1).double()
        out[q:q_end] = torch.einsum("hqk,khd->qhd", weights, segment_values).to(out.dtype)
    return out
