"""Fused rotary embedding on CPUs: the same numbers, and only for rows of compiled kernels."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from rm_core import ModelConfig, RewardScorer
from rm_core.attention import PackedAttention, run_packed_attention
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.cpu_kernels import FLAGS, compile_kernels
from rm_core.model import fused_rotary
from rm_core.model.fused_rotary import fuse_rotary

KERNELS = {"native": FLAGS, "8": (*FLAGS, "-mno-avx512f"), "4": (*FLAGS, "-mno-avx")}
TALK = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "Elbe."}]


@pytest.fixture(autouse=True)
def _restore_functions() -> Iterator[None]:
    modules = [modeling_qwen3, modeling_llama]
    functions = [module.apply_rotary_pos_emb for module in modules]
    yield
    for module, function in zip(modules, functions, strict=True):
        module.apply_rotary_pos_emb = function


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [2, 8, 20, 64, 128])
@torch.inference_mode()
def test_fused_rotation_equals_that_of_transformers(kernel: str, size: int) -> None:
    torch.manual_seed(size)
    cos, sin = torch.randn(2, 1, 37, size)
    rows = torch.randn(1, 37, 3, size).transpose(1, 2)
    expected, _ = modeling_llama.apply_rotary_pos_emb(rows, rows, cos, sin)
    rotate = compile_kernels(KERNELS[kernel]).skyreward_rotate
    out = fused_rotary._rotate(rotate, rows, cos, sin)
    assert out.stride() == rows.stride()
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def define_layer(function: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a layer whose module has a function for rotary embedding."""
    module = types.ModuleType("modeling_test")
    if function is not None:
        module.apply_rotary_pos_emb = function  # type: ignore[attr-defined]
    attention = type("Attention", (torch.nn.Module,), {"__module__": module.__name__})
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    layer = torch.nn.Module()
    layer.self_attn = attention()
    return layer, module


@pytest.mark.parametrize(
    ("function", "is_fused"),
    [
        (modeling_llama.apply_rotary_pos_emb, True),
        (modeling_cohere.apply_rotary_pos_emb, False),  # interleaved
        (modeling_glm.apply_rotary_pos_emb, False),  # interleaved, of a part of each head
        (lambda rows, cos: rows, False),
        (None, False),
    ],
)
def test_function_is_replaced_only_by_one_that_gives_the_same_rows(
    function: Any, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, module = define_layer(function, monkeypatch)
    backend, other = CpuKernelBackend(compile_kernels()), CpuKernelBackend(compile_kernels())
    fuse_rotary(layer, backend)
    assert backend.rotates_fused == is_fused
    replaced = getattr(module, "apply_rotary_pos_emb", None)
    assert (replaced is not function) == is_fused
    fuse_rotary(layer, other)  # another model of the same architecture
    assert other.rotates_fused == is_fused
    assert getattr(module, "apply_rotary_pos_emb", None) is replaced


def test_another_rotation_of_a_later_model_is_kept(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each load compares with the function as it is now, not as it was for an earlier model."""
    folder = str(checkpoint_of("qwen3"))
    assert RewardScorer.load(ModelConfig(folder, device="cpu")).loaded_model.backend.rotates_fused
    monkeypatch.setattr(modeling_qwen3, "rotate_half", modeling_cohere.rotate_half)
    later = RewardScorer.load(ModelConfig(folder, device="cpu")).loaded_model
    assert not later.backend.rotates_fused


@pytest.mark.parametrize(
    ("settings", "is_used"),
    [({}, True), ({"deterministic": True}, False), ({"attention": "eager"}, False)],
)
def test_only_models_with_the_compiled_attention_rotate_in_the_kernel(
    settings: dict[str, Any],
    is_used: bool,
    checkpoint_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The module of an architecture is shared by all models of the process."""
    folder = str(checkpoint_of("qwen3"))
    fused = RewardScorer.load(ModelConfig(folder, device="cpu"))
    assert fused.loaded_model.backend.rotates_fused
    calls: list[int] = []
    rotate = fused_rotary._rotate

    def spy(kernel: Any, rows: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        calls.append(rows.shape[2])
        return rotate(kernel, rows, *tensors)

    monkeypatch.setattr(fused_rotary, "_rotate", spy)
    scorer = RewardScorer.load(ModelConfig(folder, device="cpu", **settings))
    calls.clear()
    (reward,) = scorer.score([TALK])
    assert bool(calls) == is_used
    (expected,) = fused.score([TALK])
    assert reward.reward == pytest.approx(expected.reward, abs=1e-5)


@torch.inference_mode()
def test_plain_transformers_keeps_its_function(checkpoint_of: Callable[[str], Path]) -> None:
    RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    rows = torch.randn(1, 2, 5, 16)  # heads before tokens, as plain transformers never has them
    cos, sin = torch.randn(2, 1, 5, 16)
    rotated = modeling_qwen3.apply_rotary_pos_emb(rows, rows, cos, sin)
    expected = modeling_llama.apply_rotary_pos_emb(rows, rows, cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(rotated, expected, strict=True))
    swapped = rows.transpose(1, 2)
    by_option = modeling_qwen3.apply_rotary_pos_emb(swapped, swapped, cos, sin, unsqueeze_dim=2)
    assert torch.equal(by_option[0], expected[0].transpose(1, 2))


def test_later_model_on_other_devices_is_left_alone(
    checkpoint_of: Callable[[str], Path],
) -> None:
    """A model over several devices has no stage on the CPU for which a backend could be asked."""
    RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    rows = torch.empty(1, 5, 3, 16, device="meta").transpose(1, 2)
    cos = torch.empty(1, 5, 16, device="meta")
    stage = PackedAttention(CpuKernelBackend(compile_kernels()), None, 5, 5)
    devices = [torch.device("cuda", index) for index in range(2)]
    with run_packed_attention([(device, stage) for device in devices]):
        rotated, _ = modeling_qwen3.apply_rotary_pos_emb(rows, rows, cos, cos, unsqueeze_dim=1)
        again, _ = modeling_qwen3.apply_rotary_pos_emb(rows, rows, cos, cos)
    assert rotated.shape == again.shape == rows.shape
