"""Fused norms and MLPs on CPUs: the same rows, and used only where they are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from rm_core import ModelConfig, RewardScorer
from rm_core.cpu_kernels import FLAGS, compile_kernels
from rm_core.model.fused_layers import FusedGatedMlp, FusedRmsNorm, fuse_layers

KERNELS = {"native": FLAGS, "8": (*FLAGS, "-mno-avx512f"), "4": (*FLAGS, "-mno-avx")}
FUSED = (FusedRmsNorm, FusedGatedMlp)


class NamedMLP(nn.Module):
    """An MLP with the parts of a gated one, and another activation."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 40), nn.Linear(16, 40)
        self.down_proj = nn.Linear(40, 16)
        self.activation = activation

    def forward(self, rows: torch.Tensor) -> Any:
        return self.down_proj(self.activation(self.gate_proj(rows)) * self.up_proj(rows))


class CenteredRMSNorm(Qwen3RMSNorm):
    """A norm with the parts of RMSNorm that subtracts the mean."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 5, 16, 64, 77, 512])
@pytest.mark.parametrize("shape", [(1, 0), (1, 1), (1, 333), (2, 9, 4)])
@torch.inference_mode()
def test_fused_norm_equals_norm(kernel: str, size: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(size)
    norm = Qwen3RMSNorm(size, eps=1e-5)
    norm.weight.copy_(torch.randn(size))
    fused = FusedRmsNorm(compile_kernels(KERNELS[kernel]), norm.weight, 1e-5)
    for scale in (1e-6, 1.0, 1e6):
        rows = scale * torch.randn(*shape, size)
        torch.testing.assert_close(fused(rows), norm(rows), atol=1e-6, rtol=1e-5)
    rows = torch.randn(*shape, size).transpose(0, 1)  # not contiguous
    torch.testing.assert_close(fused(rows), norm(rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_rows", [0, 1, 50])
@torch.inference_mode()
def test_fused_mlp_equals_mlp(kernel: str, num_rows: int) -> None:
    torch.manual_seed(0)
    mlp = NamedMLP(nn.SiLU())
    fused = FusedGatedMlp(compile_kernels(KERNELS[kernel]), mlp)
    for scale in (1e-3, 1.0, 300.0):
        rows = scale * torch.randn(1, num_rows, 16)
        torch.testing.assert_close(fused(rows), mlp(rows), atol=1e-6 * scale**2, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_silu_of_extreme_gates(kernel: str) -> None:
    values = [0.0, -0.0, 1.0, -1.0, 88.0, -88.0, 1e4, -1e4, float("inf"), float("nan")]
    gate, up = torch.tensor(values), torch.full((len(values),), 2.0)
    expected = nn.functional.silu(gate) * up
    mlp = SimpleNamespace(
        gate_proj=lambda _: gate.clone(), up_proj=lambda _: up, down_proj=lambda rows: rows
    )
    out = FusedGatedMlp(compile_kernels(KERNELS[kernel]), mlp)(gate)
    torch.testing.assert_close(out, expected, atol=1e-30, rtol=1e-5, equal_nan=True)


@torch.inference_mode()
def test_module_is_replaced_only_by_one_that_gives_the_same_rows() -> None:
    torch.manual_seed(0)
    config = type("", (), {"hidden_size": 16, "intermediate_size": 40, "hidden_act": "silu"})
    modules: dict[str, tuple[nn.Module, type[nn.Module] | None]] = {
        "norm": (Qwen3RMSNorm(16), FusedRmsNorm),
        "norm of Gemma": (Gemma2RMSNorm(16), FusedRmsNorm),
        "centered": (CenteredRMSNorm(16), None),
        "LayerNorm": (nn.LayerNorm(16), None),
        "mlp": (Qwen3MLP(config), FusedGatedMlp),
        "gelu": (NamedMLP(nn.GELU()), None),
        "clamped": (NamedMLP(lambda rows: nn.functional.silu(rows).clamp(max=16.0)), None),
    }
    layers = nn.ModuleDict({name: module for name, (module, _) in modules.items()})
    for module in layers.values():
        if hasattr(module, "weight"):
            module.weight.copy_(torch.randn(16))
    rows = torch.randn(1, 30, 16)
    before = {name: module(rows) for name, module in layers.items()}
    fuse_layers(layers)
    for name, (module, fused) in modules.items():
        assert type(layers[name]) is (fused or type(module)), name
        torch.testing.assert_close(layers[name](rows), before[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "kinds"),
    [
        ("llama-v0.2", {}, set(FUSED)),
        ("qwen3", {}, set(FUSED)),
        ("gemma2", {}, {FusedRmsNorm}),  # its MLP has a GELU
        ("qwen3", {"dtype": "bfloat16"}, set()),
        ("qwen3", {"deterministic": True}, set()),
    ],
)
def test_layers_are_fused_only_in_plain_float32(
    name: str,
    settings: dict[str, Any],
    kinds: set[type[nn.Module]],
    checkpoint_of: Callable[[str], Path],
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_of(name)), device="cpu", **settings))
    modules = [type(module) for module in scorer.loaded_model.model.modules()]
    assert {kind for kind in modules if kind in FUSED} == kinds
    assert any(kind.__name__.endswith("RMSNorm") for kind in modules) == (not kinds)


def test_without_a_compiler_layers_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compile_kernels.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    layers = nn.Sequential(Qwen3RMSNorm(16))
    fuse_layers(layers)
    assert type(layers[0]) is Qwen3RMSNorm
