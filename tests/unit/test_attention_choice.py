"""Which attention is chosen where, and which is refused although it was asked for."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from rm_core.attention import Placement, choose_attention
from rm_core.config import Attention
from rm_core.errors import ModelLoadError

FLASH = "flash_attention_2"
# family, device, dtype, flash-attn installed: what `auto` takes, what may be asked for
TABLE = [
    ("llama", "cpu", "float32", False, "sdpa", "eager sdpa"),
    ("llama", "cpu", "float32", True, "sdpa", "eager sdpa"),
    ("llama", "cpu", "bfloat16", False, "eager", "eager sdpa"),
    ("llama", "cpu", "float16", True, "eager", "eager sdpa"),
    ("llama", "cuda", "float32", False, "sdpa", "eager sdpa"),
    ("llama", "cuda", "float32", True, "sdpa", "eager sdpa"),
    ("llama", "cuda", "bfloat16", False, "sdpa", "eager sdpa"),
    ("llama", "cuda", "bfloat16", True, FLASH, "eager sdpa " + FLASH),
    ("llama", "cuda", "float16", True, FLASH, "eager sdpa " + FLASH),
    ("qwen3", "cpu", "float32", False, "sdpa", "eager sdpa"),
    ("qwen3", "cpu", "bfloat16", True, "eager", "eager sdpa"),
    ("qwen3", "cuda", "bfloat16", False, "sdpa", "eager sdpa"),
    ("qwen3", "cuda", "bfloat16", True, FLASH, "eager sdpa " + FLASH),
    ("gemma2", "cpu", "float32", False, "eager", "eager"),
    ("gemma2", "cpu", "float32", True, "eager", "eager"),
    ("gemma2", "cpu", "bfloat16", False, "eager", "eager"),
    ("gemma2", "cuda", "float32", False, "eager", "eager"),
    ("gemma2", "cuda", "float32", True, "eager", "eager"),
    ("gemma2", "cuda", "bfloat16", False, "eager", "eager"),
    ("gemma2", "cuda", "bfloat16", True, FLASH, "eager " + FLASH),
]
Row = tuple[Any, str, str, bool, str, str]


def placement(family: Any, device: str, dtype: str) -> Placement:
    return Placement(family, device, dtype, softcap=family == "gemma2")


@pytest.mark.parametrize("row", TABLE)
def test_auto(row: Row) -> None:
    family, device, dtype, flash, expected, _ = row
    choice = choose_attention(placement(family, device, dtype), has_flash_attn=flash)
    assert choice.name == expected
    assert len(choice.reason) > 20


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("requested", ["eager", "sdpa", FLASH])
def test_asked_for(row: Row, requested: Attention) -> None:
    family, device, dtype, flash, _, allowed = row
    where = placement(family, device, dtype)
    if requested in allowed.split():
        choice = choose_attention(where, requested, has_flash_attn=flash)
        assert choice.name == requested
        assert "asked for" in choice.reason
        return
    with pytest.raises(ModelLoadError) as caught:
        choose_attention(where, requested, has_flash_attn=flash)
    assert f"attention '{requested}'" in caught.value.detail
    assert "use " in caught.value.detail
    assert "'auto'" in caught.value.detail


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
        assert choice.name != "sdpa"


@pytest.mark.parametrize(
    ("where", "flash", "word"),
    [
        (placement("llama", "cpu", "float32"), True, "runs on the CPU"),
        (placement("llama", "cuda", "bfloat16"), False, "skyreward[flash]"),
        (placement("llama", "cuda", "float32"), True, "no float32 kernels"),
        (placement("llama", "cuda", "bfloat16"), True, "half precision"),
        (placement("llama", "cpu", "bfloat16"), False, "bfloat16 steps"),
        (placement("gemma2", "cpu", "float32"), False, "softcap"),
        (placement("gemma2", "cuda", "bfloat16"), True, "softcap"),
    ],
)
def test_the_reason_says_why(where: Placement, flash: bool, word: str) -> None:
    assert word in choose_attention(where, has_flash_attn=flash).reason


def test_without_being_told_it_looks_for_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    where = placement("llama", "cuda", "bfloat16")
    for installed, expected in {True: FLASH, False: "sdpa"}.items():
        monkeypatch.setattr(
            "rm_core.attention.choice.flash_attn_installed", lambda installed=installed: installed
        )
        assert choose_attention(where).name == expected
