"""Choice of the attention backend, and refusal of requested backends that would be wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest

from rm_core.attention import AttentionTarget, choose_attention
from rm_core.config import Attention
from rm_core.errors import ModelLoadError

FLASH = "flash_attention_2"
BACKENDS = [name for name in get_args(Attention) if name != "auto"]
# family, device, dtype, flash-attn installed: choice of `auto`, backends that may be requested
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


def build_target(family: Any, device: str, dtype: str) -> AttentionTarget:
    gemma2 = family == "gemma2"
    return AttentionTarget(family, device, dtype, has_softcap=gemma2, has_window=gemma2)


@pytest.mark.parametrize("row", TABLE)
def test_auto_chooses_backend(row: Row) -> None:
    family, device, dtype, flash, expected, _ = row
    choice = choose_attention(build_target(family, device, dtype), has_flash_attn=flash)
    assert choice.name == expected
    assert len(choice.reason) > 20


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("requested", BACKENDS)
def test_requested_backend_is_used_or_refused(row: Row, requested: Attention) -> None:
    family, device, dtype, flash, _, allowed = row
    target = build_target(family, device, dtype)
    if requested in allowed.split():
        choice = choose_attention(target, requested, has_flash_attn=flash)
        assert choice.name == requested
        assert "setting" in choice.reason
        return
    with pytest.raises(ModelLoadError) as caught:
        choose_attention(target, requested, has_flash_attn=flash)
    assert f"attention '{requested}'" in caught.value.detail
    assert "use " in caught.value.detail
    assert "'auto'" in caught.value.detail


@pytest.mark.parametrize("row", TABLE)
def test_deterministic_chooses_batch_invariant_backend(row: Row) -> None:
    """Only eager, and the varlen kernel without splits of the keys."""
    family, device, dtype, flash, _, allowed = row
    target = replace(build_target(family, device, dtype), deterministic=True)
    choice = choose_attention(target, has_flash_attn=flash)
    kernel = device == "cuda" and dtype != "float32" and family != "gemma2"
    assert choice.name == ("varlen" if kernel else "eager")
    for name in set(allowed.split()) - {"eager", "varlen"}:
        with pytest.raises(ModelLoadError, match="batch-invariant"):
            choose_attention(target, name, has_flash_attn=flash)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("flash", [True, False])
def test_old_gpu_has_no_flash_kernels(family: Any, flash: bool) -> None:
    target = replace(build_target(family, "cuda", "float16"), is_old_gpu=True)
    assert choose_attention(target, has_flash_attn=flash).name == "eager"
    for name in ("varlen", FLASH):
        with pytest.raises(ModelLoadError):
            choose_attention(target, name, has_flash_attn=flash)  # type: ignore[arg-type]


def test_sliding_window_on_cpu_uses_eager() -> None:
    target = AttentionTarget("qwen3", "cpu", "float32", has_window=True)
    assert choose_attention(target).name == "eager"
    with pytest.raises(ModelLoadError, match="sliding window"):
        choose_attention(target, "sdpa")


def test_gemma_never_runs_without_its_softcap() -> None:
    for device, dtype, flash, requested in itertools.product(
        ["cpu", "cuda"], ["float32", "bfloat16"], [False, True], get_args(Attention)
    ):
        try:
            choice = choose_attention(
                build_target("gemma2", device, dtype), requested, has_flash_attn=flash
            )
        except ModelLoadError:
            continue
        assert choice.name in ("eager", "flex", FLASH)


@pytest.mark.parametrize(
    ("target", "flash", "word"),
    [
        (build_target("llama", "cpu", "float32"), True, "runs on the CPU"),
        (build_target("llama", "cuda", "bfloat16"), False, "--no-build-isolation flash-attn"),
        (build_target("llama", "cuda", "float32"), True, "no float32 kernels"),
        (build_target("llama", "cuda", "bfloat16"), True, "half precision"),
        (build_target("llama", "cpu", "bfloat16"), False, "bfloat16 steps"),
        (build_target("gemma2", "cpu", "float32"), False, "softcap"),
        (build_target("gemma2", "cuda", "bfloat16"), True, "softcap"),
        (build_target("gemma2", "cuda", "bfloat16"), False, "--no-build-isolation flash-attn"),
    ],
)
def test_reason_explains_choice(target: AttentionTarget, flash: bool, word: str) -> None:
    assert word in choose_attention(target, has_flash_attn=flash).reason


def test_flash_attn_is_looked_up_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    target = build_target("llama", "cuda", "bfloat16")
    for installed, expected in {True: FLASH, False: "varlen"}.items():
        monkeypatch.setattr(
            "rm_core.attention.select.is_flash_attn_installed",
            lambda installed=installed: installed,
        )
        assert choose_attention(target).name == expected


FLASH_4 = "flash_attention_4"


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_new_gpu_prefers_flash_attention_4(family: Any, flash: bool) -> None:
    """Then what an older GPU prefers; no kernel that drops the softcap."""
    target = replace(build_target(family, "cuda", "bfloat16"), is_new_gpu=True)
    choice = choose_attention(target, has_flash_attn=flash, has_flash_attn_4=True)
    others = [FLASH] if flash else []
    others += ["flex"] if family == "gemma2" else ["varlen", "flex"]
    assert (choice.name, list(choice.fallbacks)) == (FLASH_4, others)
    assert ("softcap" in choice.reason) == (family == "gemma2")
    requested = choose_attention(target, FLASH_4, has_flash_attn_4=True)
    assert requested.name == FLASH_4
    missing = choose_attention(target, has_flash_attn=False, has_flash_attn_4=False)
    assert "flash-attn-4, which is faster on this GPU" in missing.reason


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"is_new_gpu": False}, "varlen", "capability 9.0 or newer.*'auto'"),
        ({"dtype": "float32"}, "eager", "no float32 kernels"),
        ({"deterministic": True}, "varlen", "not batch-invariant"),
        ({"device_type": "cpu", "dtype": "float32", "is_new_gpu": False}, "sdpa", "needs CUDA"),
    ],
)
def test_flash_attention_4_is_left_out_where_it_does_not_fit(
    changes: dict[str, Any], name: str, reason: str
) -> None:
    target = replace(build_target("llama", "cuda", "bfloat16"), is_new_gpu=True)
    target = replace(target, **changes)
    choice = choose_attention(target, has_flash_attn=False, has_flash_attn_4=True)
    assert choice.name == name
    assert FLASH_4 not in choice.fallbacks
    with pytest.raises(ModelLoadError, match=reason):
        choose_attention(target, FLASH_4, has_flash_attn_4=True)
