"""How many positions a decoder has, by its config and the scaling of its rotary embeddings.

The numbers are those that vLLM derives, except where the rotary frequencies depend on the longest
conversation of a batch (`dynamic`, `longrope`): there the limit is the length up to which they do
not, since conversations share rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.errors import ModelLoadError

MAX_POSITIONS = 1 << 24
_ORIGINAL = "original_max_position_embeddings"
# Their frequencies are the same at every length, and the length grows by the factor.
_STRETCHED = ("linear", "proportional")


@dataclass(frozen=True, slots=True)
class PositionLimit:
    """How long a conversation may be.

    Attributes:
        positions: most tokens.
        reason: how the number was derived, for messages.
    """

    positions: int
    reason: str


def read_position_limit(file: Path, config: Mapping[str, Any]) -> PositionLimit:
    """The limit of a config.json.

    Args:
        file: named in errors.
        config: its content, with `max_position_embeddings` checked.

    Raises:
        ModelLoadError: the scaling is unknown or has values of the wrong kind.
    """
    declared = int(config["max_position_embeddings"])
    # The order in which transformers looks: the name of version 4 wins.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(name)
    if scaling is None or scaling == {}:
        return PositionLimit(declared, "max_position_embeddings")
    if not isinstance(scaling, dict):
        raise ModelLoadError(f"{name} of {file} is {scaling!r:.80}; it has to be an object or null")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "llama3"):  # llama3's declared length is the scaled one
        return PositionLimit(declared, "max_position_embeddings")
    # Here the key outside wins, for transformers and vLLM alike.
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
            "max_position_embeddings; beyond it, `dynamic` scaling gives a conversation another "
            "reward beside a longer one",
        )
    if kind == "longrope":
        return PositionLimit(
            int(min(original, declared)),
            f"{_ORIGINAL}; beyond it, `longrope` gives a conversation another reward beside a "
            "longer one",
        )
    raise ModelLoadError(
        f"{name} of {file} has the rope_type {kind!r:.40}; supported: default, linear, dynamic, "
        "yarn, llama3, longrope, proportional"
    )


def _scale_limit(file: Path, positions: float, factor: float, reason: str) -> PositionLimit:
    scaled = positions * factor
    if not 1 <= scaled <= MAX_POSITIONS:
        raise ModelLoadError(
            f"{file} scales its positions to {scaled:g} ({reason}, factor {factor:g}); from 1 to "
            f"{MAX_POSITIONS:,} are allowed: correct the factor"
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
            f"{key} ({where}) of {file} is {value!r:.40}; it has to be a "
            f"{'whole ' if whole else ''}number above 0"
        )
    return value
