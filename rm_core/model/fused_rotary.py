"""Rotary position embedding on CPUs in one pass over queries and keys.

transformers' function makes seven tensors of their size. The module that defines a decoder gets
another function in its place, which rotates the packed rows of models that attend with the compiled
kernel, and calls transformers' function for everything else.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rm_core.attention import get_running_backend
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.cpu_kernels import compile_kernels

_NAME = "apply_rotary_pos_emb"
_TOLERANCE = 1e-5
_Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def fuse_rotary(layer: nn.Module, backend: CpuKernelBackend) -> None:
    """Let the backend's model rotate in the kernel, if the results are those of its function."""
    module = sys.modules[type(getattr(layer, "self_attn", layer)).__module__]
    function: _Rotate | None = getattr(module, _NAME, None)
    if function is None:
        return
    original: _Rotate = getattr(function, "original", function)
    kernel = compile_kernels().skyreward_rotate
    if _is_equal(original, kernel):
        backend.rotates_fused = True
        if function is original:
            setattr(module, _NAME, _wrap(original, kernel))


def _wrap(original: _Rotate, kernel: Any) -> _Rotate:
    @functools.wraps(original)
    def rotate(
        query: torch.Tensor,
        key: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_compiling() or args or options or not _is_running_fused(query):
            return original(query, key, cos, sin, *args, **options)
        if not all(_is_supported(rows, cos, sin) for rows in (query, key)):
            return original(query, key, cos, sin)
        return _rotate(kernel, query, cos, sin), _rotate(kernel, key, cos, sin)

    rotate.original = original  # type: ignore[attr-defined]
    return rotate


def _is_running_fused(query: torch.Tensor) -> bool:
    if query.device.type != "cpu":
        return False
    backend = get_running_backend(query.device)
    return isinstance(backend, CpuKernelBackend) and backend.rotates_fused


def _is_supported(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    _, _, num_tokens, size = rows.shape
    return (
        rows.dtype == cos.dtype == sin.dtype == torch.float32
        and rows.stride(-1) == 1
        and rows.transpose(1, 2).is_contiguous()
        and cos.shape == sin.shape == (1, num_tokens, size)
        and cos.is_contiguous()
        and sin.is_contiguous()
    )


def _rotate(kernel: Any, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[1, num_heads, num_tokens, head_dim]`."""
    out = torch.empty_like(rows)
    _, num_heads, num_tokens, size = rows.shape
    kernel(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (rows, out, cos, sin)),
        *(ctypes.c_int64(number) for number in (num_tokens, num_heads, size)),
        *(ctypes.c_int64(rows.stride(dim)) for dim in (2, 1)),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return out


def _is_equal(original: _Rotate, kernel: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 5, 3, 16, generator=generator).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 5, 16, generator=generator)
    try:
        expected, _ = original(rows, rows, cos, sin)
    except (RuntimeError, TypeError, ValueError, IndexError):  # its arguments are others
        return False
    output = _rotate(kernel, rows, cos, sin)
    return expected.shape == output.shape and bool((expected - output).abs().max() <= _TOLERANCE)
