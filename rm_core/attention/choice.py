"""Chooses the attention implementation by family, device, dtype and what is installed.

The choice keeps its reason, which `/info` and `skyreward models` show. A backend that would drop
Gemma-2's attention softcap is refused even when it is asked for: the rewards would be plausible
and wrong.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rm_core.config import Attention
from rm_core.errors import ModelLoadError

Family: TypeAlias = Literal["llama", "gemma2", "qwen3"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and as what a model runs.

    Attributes:
        family: of the architecture.
        device_type: `cuda` or `cpu`.
        dtype: resolved name, such as `bfloat16`.
        softcap: whether the config has attention logit soft-capping.
    """

    family: Family
    device_type: str
    dtype: str
    softcap: bool = False


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """An implementation that transformers knows by name, and why it was taken."""

    name: str
    reason: str


def flash_attn_installed() -> bool:
    """Whether a flash-attn that knows the softcap is there (not whether it works on this device).

    Releases before 2.6 have no softcap, and transformers would leave it out without a word; they
    count as not installed.
    """
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (2, 6)


def choose_attention(
    placement: Placement, requested: Attention = "auto", *, has_flash_attn: bool | None = None
) -> AttentionChoice:
    """The implementation to use.

    Args:
        placement: see `Placement`.
        requested: a name overrides the choice, unless it would score wrongly.
        has_flash_attn: whether flash-attn is installed; looked up if None.

    Raises:
        ModelLoadError: the requested implementation would score wrongly or cannot run.
    """
    if has_flash_attn is None:
        has_flash_attn = flash_attn_installed()
    if requested != "auto":
        _refuse(placement, requested, has_flash_attn)
        return AttentionChoice(requested, "asked for by the setting `attention`")
    capped = "keeps Gemma-2's attention softcap; SDPA would drop it without a word"
    if placement.device_type == "cuda" and has_flash_attn and placement.dtype != "float32":
        reason = "flash-attn is installed and the model runs on CUDA in half precision"
        suffix = f"; {capped}" if placement.softcap else ""
        return AttentionChoice("flash_attention_2", reason + suffix)
    if placement.softcap:
        return AttentionChoice("eager", f"{_without_flash(placement, has_flash_attn)}; {capped}")
    if placement.device_type == "cpu" and placement.dtype != "float32":
        # Measured on random checkpoints: 0.05 to 0.2 from eager at rewards of 1 to 9.
        reason = "SDPA on the CPU strays from eager by several bfloat16 steps in half precision"
        return AttentionChoice("eager", reason)
    return AttentionChoice("sdpa", _without_flash(placement, has_flash_attn))


def _without_flash(placement: Placement, has_flash_attn: bool) -> str:
    if placement.device_type != "cuda":
        return "flash-attn needs CUDA and the model runs on the CPU"
    if not has_flash_attn:
        return "flash-attn is not installed (pip install 'skyreward[flash]')"
    return "flash-attn has no float32 kernels"


def _refuse(placement: Placement, requested: str, has_flash_attn: bool) -> None:
    if placement.softcap and requested == "sdpa":
        raise ModelLoadError(
            "attention 'sdpa' drops Gemma-2's attention softcap and would score wrongly; use "
            "'flash_attention_2' (CUDA), 'eager' or 'auto'"
        )
    if requested == "flash_attention_2":
        if placement.device_type != "cuda":
            raise ModelLoadError("attention 'flash_attention_2' needs CUDA; use 'auto' on a CPU")
        if not has_flash_attn:
            raise ModelLoadError(
                "attention 'flash_attention_2' needs flash-attn: pip install 'skyreward[flash]', "
                "or use 'auto'"
            )
        if placement.dtype == "float32":
            raise ModelLoadError(
                "attention 'flash_attention_2' has no float32 kernels; use dtype 'bfloat16' or "
                "attention 'auto'"
            )
