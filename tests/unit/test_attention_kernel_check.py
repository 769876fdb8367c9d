"""A backend that computes wrong attention is detected when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.fake_kernels import flex_kernel, torch_kernel

from rm_core import ModelConfig, ModelLoadError, RewardScorer
from rm_core.attention import (
    AttentionParams,
    AttentionTarget,
    Segment,
    choose_attention,
    select_validated_backend,
)
from rm_core.attention.cpu_kernel import CpuKernelBackend, CpuKernelPlan, make_cpu_backend
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.attention.eager import EagerBackend
from rm_core.attention.kernel_check import AttentionHeads, check_backend

CPU = torch.device("cpu")
HEADS = AttentionHeads(num_heads=4, num_key_value_heads=2, head_dim=16)
PARAMS = [
    AttentionParams(0.25),
    AttentionParams(0.25, softcap=5.0),
    AttentionParams(0.25, window=40),
]


class IncompleteBackend(EagerBackend):
    """Computes attention without one feature."""

    def __init__(self, without: str) -> None:
        super().__init__()
        self._without = without

    def attend(
        self,
        plan: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        softcap = None if self._without == "softcap" else params.softcap
        window = None if self._without == "window" else params.window
        if self._without == "one position of the window" and window:
            window -= 1
        return super().attend(
            plan, query, key, value, AttentionParams(params.scaling, softcap, window)
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_correct_backend_passes(dtype: torch.dtype) -> None:
    check_backend(EagerBackend(), HEADS, PARAMS, CPU, dtype)
    check_backend(EagerBackend(aligned=True), HEADS, PARAMS, CPU, dtype)
    check_backend(CpuSdpaBackend(), HEADS, PARAMS[:1], CPU, dtype)
    check_backend(make_cpu_backend(), HEADS, PARAMS[:1], CPU, dtype)


@pytest.mark.parametrize("without", ["softcap", "window", "one position of the window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_incomplete_backend_fails(dtype: torch.dtype, without: str) -> None:
    with pytest.raises(ArithmeticError, match="output differs from eager by"):
        check_backend(IncompleteBackend(without), HEADS, PARAMS, CPU, dtype)


def drop_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(self: CpuKernelBackend, segments: Sequence[Segment], *_: object) -> CpuKernelPlan:
        return CpuKernelPlan([replace(segment, keys=segment.keys[-1:]) for segment in segments])

    monkeypatch.setattr(CpuKernelBackend, "plan", lossy)


def test_auto_falls_back_with_reason(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_ancestors(monkeypatch)
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    described = scorer.describe()
    assert described.attention == scorer.fingerprint.attention == "eager"
    assert described.attention_reason.startswith("sdpa failed its self-check")


def test_requested_backend_that_fails_is_refused(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_ancestors(monkeypatch)
    with pytest.raises(ModelLoadError, match=r"sdpa failed its self-check.*use 'auto' or 'eager'"):
        RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu", attention="sdpa"))


@pytest.fixture
def broken_flash_attn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed flash-attn that was built for another torch."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2')")
    about = tmp_path / "flash_attn-2.8.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("no kernel image is available")


@pytest.mark.usefixtures("broken_flash_attn")
@pytest.mark.parametrize(
    ("name", "working", "expected"),
    [
        ("llama-v0.2", ("varlen", "flex"), "varlen"),
        ("qwen3", ("flex",), "flex"),
        ("gemma2", ("varlen", "flex"), "flex"),
        ("llama-v0.2", (), "eager"),
        ("gemma2", (), "eager"),
    ],
)
def test_flash_attn_that_does_not_import_falls_back_to_the_next_kernel(
    name: str,
    working: tuple[str, ...],
    expected: str,
    scorer_of: Callable[..., RewardScorer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gemma2 = name == "gemma2"
    family: Any = name.split("-")[0]
    choice = choose_attention(
        AttentionTarget(family, "cuda", "float16", has_softcap=gemma2, has_window=gemma2)
    )
    assert choice.name == "flash_attention_2"
    kernels = {"varlen": torch_kernel, "flex": lambda: flex_kernel}
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn", kernels["varlen"] if "varlen" in working else fail
    )
    monkeypatch.setattr(
        "rm_core.attention.flex.compile_kernel", kernels["flex"] if "flex" in working else fail
    )
    params = [AttentionParams(0.25, 5.0 if gemma2 else None, 32 if gemma2 else None)]
    used, backend = select_validated_backend(
        choice, HEADS, params, torch.float32, CPU, requested="auto", deterministic=False
    )
    assert used.name == expected
    check_backend(backend, HEADS, [AttentionParams(0.25)], CPU, torch.float32)
    failures = used.reason.split("; ")
    assert failures[0] == (
        "flash_attention_2 failed its self-check on this device: ImportError: undefined symbol: "
        "_ZN3c105ErrorC2"
    )
    tried = ["flash_attention_2", "flex"] if gemma2 else ["flash_attention_2", "varlen", "flex"]
    failed = tried if expected == "eager" else tried[: tried.index(expected)]
    assert [failure.split()[0] for failure in failures] == failed
    assert all(failure in caplog.text for failure in failures)
    assert f"trying {expected} next" in caplog.text


@pytest.mark.usefixtures("broken_flash_attn")
def test_requested_flash_attn_that_does_not_import_is_refused(
    scorer_of: Callable[..., RewardScorer],
) -> None:
    choice = choose_attention(AttentionTarget("llama", "cuda", "float16"), "flash_attention_2")
    params = [AttentionParams(0.25)]
    with pytest.raises(ModelLoadError, match=r"undefined symbol.*use 'auto' or 'eager'"):
        select_validated_backend(
            choice,
            HEADS,
            params,
            torch.float32,
            CPU,
            requested="flash_attention_2",
            deterministic=False,
        )
