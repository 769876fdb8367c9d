"""Which attention is chosen where, and which is refused although it was asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest

from rm_core.attention import AttentionTarget, choose_attention
from rm_core.config import Attention
from rm_core.errors import ModelLoadError

FLASH = "flash_attention_2"
EVERY = [name for name in get_args(Attention) if name != "auto"]
# family, device, dtype, flash-attn installed: what `auto` takes, what may be asked for
TABLE = [
    ("llama", "cpu", "float32", False, "sdpa", "eager sdpa"),
    ("llama", "cpu", "float32", True, "sdpa", "eager sdpa"),
    ("llama", "cpu", "bfloat16", False, "eager", "eager sdpa"),
    ("llama", "cpu", "float16", True, "eager", "eager sdpa"),
    ("llama", "cuda", "float32", False, "eager", "eager flex"),
    ("llama", "cuda", "float32", True, "eager", "eager flex"),
    ("llama", "cuda", "bfloat16", False, "varlen", "eager varlen flex"),
    ("llama", "cuda", "bfloat16", True, FLASH, "eager varlen flex " + FLASH),
    ("llama", "cuda", "float16", True, FLASH, "eager varlen flex " + FLASH),
    ("qwen3", "cpu", "float32", False, "sdpa", "eager sdpa"),
    ("qwen3", "cpu", "bfloat16", True, "eager", "eager sdpa"),
    ("qwen3", "cuda", "bfloat16", False, "varlen", "eager varlen flex"),
    ("qwen3", "cuda", "bfloat16", True, FLASH, "eager varlen flex " + FLASH),
    ("gemma2", "cpu", "float32", False, "eager", "eager"),
    ("gemma2", "cpu", "float32", True, "eager", "eager"),
    ("gemma2", "cpu", "bfloat16", False, "eager", "eager"),
    ("gemma2", "cuda", "float32", False, "eager", "eager flex"),
    ("gemma2", "cuda", "float32", True, "eager", "eager flex"),
    ("gemma2", "cuda", "bfloat16", False, "flex", "eager flex"),
    ("gemma2", "cuda", "bfloat16", True, FLASH, "eager flex " + FLASH),
]
Row = tuple[Any, str, str, bool, str, str]


def placement(family: Any, device: str, dtype: str) -> AttentionTarget:
    gemma2 = family == "gemma2"
    return AttentionTarget(family, device, dtype, has_softcap=gemma2, has_window=gemma2)


@pytest.mark.parametrize("row", TABLE)
def test_auto(row: Row) -> None:
    family, device, dtype, flash, expected, _ = row
    choice = choose_attention(placement(family, device, dtype), has_flash_attn=flash)
    assert choice.name == expected
    assert len(choice.reason) > 20


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("requested", EVERY)
def test_asked_for(row: Row, requested: Attention) -> None:
    family, device, dtype, flash, _, allowed = row
    where = placement(family, device, dtype)
    if requested in allowed.split():
        choice = choose_attention(where, requested, has_flash_attn=flash)
        assert choice.name == requested
        assert "setting" in choice.reason
        return
    with pytest.raises(ModelLoadError) as caught:
        choose_attention(where, requested, has_flash_attn=flash)
    assert f"attention '{requested}'" in caught.value.detail
    assert "use " in caught.value.detail
    assert "'auto'" in caught.value.detail


@pytest.mark.parametrize("row", TABLE)
def test_batch_invariant(row: Row) -> None:
    """Only eager, and the varlen kernel that never splits its keys."""
    family, device, dtype, flash, _, allowed = row
    where = replace(placement(family, device, dtype), deterministic=True)
    choice = choose_attention(where, has_flash_attn=flash)
    kernel = device == "cuda" and dtype != "float32" and family != "gemma2"
    assert choice.name == ("varlen" if kernel else "eager")
    for name in set(allowed.split()) - {"eager", "varlen"}:
        with pytest.raises(ModelLoadError, match="batch-invariant"):
            choose_attention(where, name, has_flash_attn=flash)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("flash", [True, False])
def test_an_old_gpu_has_no_flash_kernels(family: Any, flash: bool) -> None:
    where = replace(placement(family, "cuda", "float16"), is_old_gpu=True)
    assert choose_attention(where, has_flash_attn=flash).name == "eager"
    for name in ("varlen", FLASH):
        with pytest.raises(ModelLoadError):
            choose_attention(where, name, has_flash_attn=flash)  # type: ignore[arg-type]


def test_a_sliding_window_alone_keeps_the_cpu_kernel_away() -> None:
    where = AttentionTarget("qwen3", "cpu", "float32", has_window=True)
    assert choose_attention(where).name == "eager"
    with pytest.raises(ModelLoadError, match="sliding window"):
        choose_attention(where, "sdpa")


def test_gemma_never_runs_without_its_softcap() -> None:
    for device, dtype, flash, requested in itertools.product(
        ["cpu", "cuda"], ["float32", "bfloat16"], [False, True], get_args(Attention)
    ):
        try:
            choice = choose_attention(
                placement("gemma2", device, dtype), requested, has_flash_attn=flash
            )
        except ModelLoadError:
            continue
        assert choice.name in ("eager", "flex", FLASH)


@pytest.mark.parametrize(
    ("where", "flash", "word"),
    [
        (placement("llama", "cpu", "float32"), True, "runs on the CPU"),
        (placement("llama", "cuda", "bfloat16"), False, "--no-build-isolation flash-attn"),
        (placement("llama", "cuda", "float32"), True, "no float32 kernels"),
        (placement("llama", "cuda", "bfloat16"), True, "half precision"),
        (placement("llama", "cpu", "bfloat16"), False, "bfloat16 steps"),
        (placement("gemma2", "cpu", "float32"), False, "softcap"),
        (placement("gemma2", "cuda", "bfloat16"), True, "softcap"),
        (placement("gemma2", "cuda", "bfloat16"), False, "--no-build-isolation flash-attn"),
    ],
)
def test_the_reason_says_why(where: AttentionTarget, flash: bool, word: str) -> None:
    assert word in choose_attention(where, has_flash_attn=flash).reason


def test_without_being_told_it_looks_for_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    where = placement("llama", "cuda", "bfloat16")
    for installed, expected in {True: FLASH, False: "varlen"}.items():
        monkeypatch.setattr(
            "rm_core.attention.select.is_flash_attn_installed",
            lambda installed=installed: installed,
        )
        assert choose_attention(where).name == expected
