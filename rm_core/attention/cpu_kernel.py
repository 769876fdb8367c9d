"""Attention on CPUs with the kernel of `rm_core/cpu_kernels/attention.cpp`.

torch's SDPA kernel has a third of its speed on two cores of an AMD EPYC, because MKL computes its
products without AVX-512 there (`tests/bench/cpu_attention.py`).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rm_core.attention.base import AttentionBackend, AttentionParams
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.attention.segments import Segment
from rm_core.cpu_kernels import KernelBuildError, compile_kernels

logger = logging.getLogger(__name__)

# Rows of a tile, each a query of one of the heads that share a key, and their scores: 1 MiB. A
# core caches them; with more rows it was not faster.
_MAX_ROWS = 48
_MIN_ROWS = 6
_MAX_SCORES = 2**18


class _Heads(ctypes.Structure):
    """`Heads` of attention.cpp."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("token_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
    )


class _Attention(ctypes.Structure):
    """`Attention` of attention.cpp."""

    _fields_ = (
        *((name, _Heads) for name in ("query", "key", "value", "out")),
        *(
            (name, ctypes.c_int64)
            for name in ("num_keys", "num_heads", "num_key_value_heads", "head_dim")
        ),
        ("tiles", ctypes.c_void_p),
        ("slices", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("num_tiles", "max_queries", "max_scores", "num_threads")
        ),
        ("scaling", ctypes.c_float),
        ("workspace", ctypes.c_void_p),
    )


def make_cpu_backend() -> AttentionBackend:
    """Return the backend for this machine: the compiled kernel, or torch's where that fails."""
    try:
        return CpuKernelBackend(compile_kernels())
    except KernelBuildError as error:
        logger.warning("attention: %s; torch's SDPA kernel is used, which is slower", error)
        return CpuSdpaBackend(str(error))


@dataclass(frozen=True, slots=True)
class Tiles:
    """Division of a batch's segments into tiles, see `Tile` and `Slice` of attention.cpp."""

    tiles: torch.Tensor  # int32 `[num_tiles, 4]`
    slices: torch.Tensor  # int32 `[num_slices, 2]`
    max_queries: int  # largest number of queries of a tile
    max_scores: int  # largest product of the queries and the keys of a tile


@dataclass(frozen=True, slots=True)
class CpuKernelPlan:
    """Segments of a batch, and their division into tiles, made when a layer first attends."""

    segments: Sequence[Segment]
    # By the number of heads that share a key.
    tiles: dict[int, Tiles] = field(default_factory=dict)


class CpuKernelBackend:
    """Backend on the kernel in C++, see `AttentionBackend`. Computes in float32.

    Supports neither softcap nor window.

    Attributes:
        rotates_fused: whether rows of the model are rotated by `rm_core.model.fused_rotary`.
    """

    def __init__(self, kernel: ctypes.CDLL) -> None:
        self._kernel = kernel
        self.rotates_fused = False

    def plan(
        self, segments: Sequence[Segment], num_keys: int, device: torch.device
    ) -> CpuKernelPlan:
        """See `AttentionBackend`."""
        return CpuKernelPlan(segments)

    def attend(
        self,
        plan: CpuKernelPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        assert params.softcap is None
        assert params.window is None
        num_keys, num_key_value_heads, head_dim = key.shape
        num_heads = query.shape[1]
        repeats = num_heads // num_key_value_heads
        if repeats not in plan.tiles:
            plan.tiles[repeats] = _build_tiles(plan.segments, repeats)
        tiles = plan.tiles[repeats]
        dtype = query.dtype
        query, key, value = (
            tensor.float() if tensor.stride(-1) == 1 else tensor.float().contiguous()
            for tensor in (query, key, value)
        )
        out = torch.empty(query.shape)
        arguments = _Attention(
            *(
                _Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
                for tensor in (query, key, value, out)
            ),
            *(num_keys, num_heads, num_key_value_heads, head_dim),
            *(tiles.tiles.data_ptr(), tiles.slices.data_ptr()),
            *(len(tiles.tiles), tiles.max_queries, tiles.max_scores, torch.get_num_threads()),
            params.scaling,
        )
        workspace = torch.empty(self._kernel.skyreward_get_workspace_size(ctypes.byref(arguments)))
        arguments.workspace = workspace.data_ptr()
        self._kernel.skyreward_attend(ctypes.byref(arguments))
        return out.to(dtype)


def _build_tiles(segments: Sequence[Segment], repeats: int) -> Tiles:
    """Divide segments into tiles whose rows and scores are limited."""
    tiles: list[tuple[int, int, int, int]] = []
    slices: list[tuple[int, int]] = []
    max_queries = max_scores = 0
    for segment in segments:
        rows = max(_MIN_ROWS, min(_MAX_ROWS, _MAX_SCORES // segment.num_keys))
        size = max(1, rows // repeats)
        *ancestors, (first, last) = segment.keys
        for start in range(segment.start, segment.stop, size):
            stop = min(start + size, segment.stop)
            tiles.append((start, stop, len(slices), len(slices) + len(segment.keys)))
            slices += [*ancestors, (first, last - (segment.stop - stop))]
            max_queries = max(max_queries, stop - start)
            max_scores = max(max_scores, (stop - start) * segment.num_keys)
    return Tiles(
        torch.tensor(tiles, dtype=torch.int32),
        torch.tensor(slices, dtype=torch.int32),
        max_queries,
        max_scores,
    )
