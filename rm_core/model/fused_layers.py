"""Parts of decoder layers for CPUs in float32 that read and write each number once.

RMSNorm and the gated MLP of transformers are several operations of torch each, and each of them
reads and writes all rows. A module is replaced only if its replacement gives the same rows.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rm_core.cpu_kernels import KernelBuildError, compile_kernels

logger = logging.getLogger(__name__)

# Of the largest output: both modules round in another order.
_TOLERANCE = 1e-5
# Sizes of random rows: some MLPs clamp large activations, and an epsilon decides small norms.
_SCALES = (1e-3, 1.0, 1e4)


class FusedRmsNorm(nn.Module):
    """Replaces an RMSNorm.

    Args:
        kernels: the compiled kernels.
        weight: float32 `[size]`, the factors of a normalized row.
        epsilon: added to the mean of the squares.
    """

    def __init__(self, kernels: ctypes.CDLL, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self._kernel = kernels.skyreward_rms_norm
        # Not a parameter, like the weights of `PrepackedLinear`.
        self._weight = weight.detach().contiguous()
        self._epsilon = epsilon

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize `[..., size]`."""
        rows = rows.contiguous()
        out = torch.empty_like(rows)
        size = rows.shape[-1]
        self._kernel(
            _point_to(rows),
            _point_to(self._weight),
            _point_to(out),
            ctypes.c_int64(rows.numel() // size),
            ctypes.c_int64(size),
            ctypes.c_float(self._epsilon),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return out


class FusedGatedMlp(nn.Module):
    """Replaces an MLP with a SiLU gate (SwiGLU), whose linear layers it keeps."""

    def __init__(self, kernels: ctypes.CDLL, mlp: Any) -> None:
        super().__init__()
        self._kernel = kernels.skyreward_silu_multiply
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., hidden_size]` to the same shape."""
        gate, up = self.gate_proj(rows), self.up_proj(rows)
        self._kernel(
            _point_to(gate),
            _point_to(up),
            ctypes.c_int64(gate.numel()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        out: torch.Tensor = self.down_proj(gate)
        return out


@torch.inference_mode()
def fuse_layers(layers: nn.Module) -> None:
    """Replace the norms and MLPs of decoder layers, in place; do nothing without a compiler."""
    try:
        kernels = compile_kernels()
    except KernelBuildError as error:
        logger.info("layers are not fused: %s", error)
        return
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            for candidate, size in _build_candidates(kernels, child):
                if _is_equal(child, candidate, size):
                    setattr(parent, name, candidate)
                    break


def _build_candidates(kernels: ctypes.CDLL, module: Any) -> Iterator[tuple[nn.Module, int]]:
    """Yield modules that may replace a module, and the size of their rows."""
    kind = type(module).__name__
    if kind.endswith("RMSNorm") and getattr(module, "weight", None) is not None:
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float):
            for weight in (module.weight, 1 + module.weight):  # the latter in Gemma
                yield FusedRmsNorm(kernels, weight, epsilon), len(module.weight)
    linears = [getattr(module, f"{part}_proj", None) for part in ("gate", "up", "down")]
    if kind.endswith("MLP") and all(isinstance(linear, nn.Linear) for linear in linears):
        yield FusedGatedMlp(kernels, module), module.gate_proj.in_features


def _is_equal(module: nn.Module, candidate: nn.Module, size: int) -> bool:
    rows = torch.randn(1, 3, size, generator=torch.Generator().manual_seed(0))
    for scale in _SCALES:
        expected, output = module(scale * rows), candidate(scale * rows)
        difference = float((output - expected).abs().max())
        if not difference <= _TOLERANCE * float(expected.abs().max()):
            return False
    return True


def _point_to(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
