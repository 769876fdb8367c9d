"""Whether a reward on CPUs is the same to the last bit in every batch, without a mode for it.

The compiled kernels add up each row in an order that depends on its conversation alone. oneDNN's
products with packed weights do so too, for all numbers of rows that were tried, but nothing
promises it. So they are compared at load on this machine, and only decoders are accepted whose
other operations are known to treat each number by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rm_core.attention import AttentionBackend
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.model.fused_layers import FusedRmsNorm
from rm_core.model.prepacked_linear import PrepackedLinear

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Random rows, and numbers of rows that have to give the same results as all of them together.
_NUM_ROWS = 300
_PARTS = (1, 2, 3, 17, 64, 129)


@torch.inference_mode()
def is_batch_invariant(decoder: Any, family: str, backend: AttentionBackend) -> bool:
    """Return whether a decoder that is prepared for packed rows is batch-invariant to the bit."""
    if family not in _FAMILIES or not isinstance(backend, CpuKernelBackend):
        return False
    leaves = [module for module in decoder.layers.modules() if not any(module.children())]
    known = all(isinstance(leaf, PrepackedLinear | FusedRmsNorm) for leaf in leaves)
    if not known or not isinstance(decoder.norm, FusedRmsNorm):
        return False
    linears = {
        (leaf.in_features, leaf.out_features, leaf.has_bias): leaf
        for leaf in leaves
        if isinstance(leaf, PrepackedLinear)
    }
    return _rotates_each_position_alike(decoder.rotary_emb) and all(
        _computes_each_row_alike(linear, size) for (size, *_), linear in linears.items()
    )


def _computes_each_row_alike(linear: nn.Module, size: int) -> bool:
    rows = torch.randn(_NUM_ROWS, size, generator=torch.Generator().manual_seed(0))
    expected = linear(rows)
    return all(
        torch.equal(linear(rows[start : start + part]), expected[start : start + part])
        for part in _PARTS
        for start in (0, _NUM_ROWS - part)
    )


def _rotates_each_position_alike(rotary: Any) -> bool:
    rows, positions = torch.zeros(1, 1), torch.arange(_NUM_ROWS).unsqueeze(0)
    expected = rotary(rows, positions)
    return all(
        torch.equal(output, full[:, start : start + part])
        for part in _PARTS
        for start in (0, _NUM_ROWS - part)
        for output, full in zip(
            rotary(rows, positions[:, start : start + part]), expected, strict=True
        )
    )
