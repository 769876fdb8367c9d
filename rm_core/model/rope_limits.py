"""Derives the number of a decoder's positions from its config and its rotary scaling.

The numbers equal vLLM's, except where the rotary frequencies depend on the longest conversation of
a batch (`dynamic`, `longrope`): there the limit is the length up to which the frequencies are
constant, because conversations share rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.errors import ModelLoadError
from rm_core.kinds import VISION_LANGUAGE

MAX_POSITIONS = 1 << 24
_ORIGINAL = "original_max_position_embeddings"
# Scalings whose frequencies are the same at every length; the factor multiplies the length.
_STRETCHED = ("linear", "proportional")


@dataclass(frozen=True, slots=True)
class PositionLimit:
    """Maximum length of a conversation."""

    positions: int  # maximum number of tokens
    reason: str  # how the number was derived, for messages


def read_position_limit(file: Path, config: Mapping[str, Any]) -> PositionLimit:
    """Return the position limit of a config.json with a checked `max_position_embeddings`."""
    declared = int(config["max_position_embeddings"])
    # Same order as in transformers: the name of version 4 takes precedence.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(name)
    if scaling is None or scaling == {}:
        return PositionLimit(declared, "max_position_embeddings")
    if not isinstance(scaling, dict):
        raise ModelLoadError(f"{name} of {file} is {scaling!r:.80}; it must be an object or null")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # llama3's declared length is the scaled one; mrope has rows of positions, and scales nothing.
    has_rows = kind == "mrope" and config.get("model_type") in VISION_LANGUAGE
    if kind in ("default", "llama3") or has_rows:
        return PositionLimit(declared, "max_position_embeddings")
    # The key outside the scaling object takes precedence, as in transformers and vLLM.
    original = (
        _read_number(file, "the config", config, _ORIGINAL, whole=True)
        or _read_number(file, name, scaling, _ORIGINAL, whole=True)
        or declared
    )
    factor = _read_number(file, name, scaling, "factor", whole=False)
    if kind in _STRETCHED:
        return _scale_limit(
            file, declared, factor or 1.0, f"max_position_embeddings, {kind} scaling"
        )
    if kind == "yarn":
        factor = factor or declared / original
        return _scale_limit(file, original, factor, f"{_ORIGINAL}, yarn scaling")
    if kind == "dynamic":
        return PositionLimit(
            declared,
            "max_position_embeddings; beyond it, `dynamic` scaling makes the reward of a "
            "conversation depend on the longest conversation of its batch",
        )
    if kind == "longrope":
        return PositionLimit(
            int(min(original, declared)),
            f"{_ORIGINAL}; beyond it, `longrope` makes the reward of a conversation depend on the "
            "longest conversation of its batch",
        )
    raise ModelLoadError(
        f"{name} of {file} has unsupported rope_type {kind!r:.40}; supported: default, linear, "
        "dynamic, yarn, llama3, longrope, proportional"
    )


def _scale_limit(file: Path, positions: float, factor: float, reason: str) -> PositionLimit:
    scaled = positions * factor
    if not 1 <= scaled <= MAX_POSITIONS:
        raise ModelLoadError(
            f"{file} scales the number of positions to {scaled:g} ({reason}, factor {factor:g}); "
            f"1 to {MAX_POSITIONS:,} are allowed: correct the factor"
        )
    return PositionLimit(int(scaled), f"{reason}, factor {factor:g}")


def _read_number(
    file: Path, where: str, content: Mapping[str, Any], key: str, *, whole: bool
) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MAX_POSITIONS:
        raise ModelLoadError(
            f"{key} ({where}) of {file} is {value!r:.40}; it must be "
            f"{'an integer' if whole else 'a number'} above 0"
        )
    return value
