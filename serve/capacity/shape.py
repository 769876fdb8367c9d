"""The shape of a checkpoint, and what follows from it: parameters, bytes, operations. Pure.

Attributes are called as in transformers' configs, so that `rm_core.memory` takes a shape for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_core import ModelConfig, find_entry, open_checkpoint
from rm_core.catalog.entries import CatalogEntry, Family
from rm_core.model.pipeline import get_stage
from serve.errors import UnknownShapeError

# Norms of a layer, in hidden sizes; Qwen3 has two more, of a head each.
_NORMS = {"llama": 2, "qwen3": 2, "gemma2": 4}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder with a reward head; `sliding_window` is of every other layer, if any."""

    name: str
    family: Family
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    sliding_window: int | None
    source: str

    @property
    def linear_weights(self) -> int:
        """Of the linear layers of one layer: what every token is multiplied with."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return self.hidden_size * (2 * queries + 2 * keys + 3 * self.intermediate_size)

    @property
    def layer_parameters(self) -> int:
        """Of one layer, norms too."""
        heads = 2 * self.head_dim if self.family == "qwen3" else 0
        return self.linear_weights + _NORMS[self.family] * self.hidden_size + heads

    @property
    def num_parameters(self) -> int:
        """Of the classifier: the embedding once, no language-model head, one row of scores."""
        ends = (self.vocab_size + 2) * self.hidden_size
        return ends + self.num_hidden_layers * self.layer_parameters

    def weight_bytes(self, itemsize: int, num_devices: int = 1) -> int:
        """On the fullest device, if the layers are spread over several.

        Args:
            itemsize: bytes of a weight.
            num_devices: over which `rm_core.model.pipeline` spreads them.
        """
        layers = [0] * num_devices
        for index in range(self.num_hidden_layers):
            layers[get_stage(index, self.num_hidden_layers, num_devices)] += 1
        on_each = [count * self.layer_parameters for count in layers]
        on_each[0] += self.vocab_size * self.hidden_size
        on_each[-1] += 2 * self.hidden_size
        return max(on_each) * itemsize

    def count_group_flops(self, prompt: int, response: int, group: int) -> float:
        """Floating-point operations of a prompt with several responses, the prompt computed once.

        As `make gpu-check` counts: two for a weight and token, four for each channel of a head,
        query and key that it sees; the last layer in full.
        """
        tokens = prompt + group * response
        linear = 2.0 * self.linear_weights * self.num_hidden_layers * tokens
        per_key = 4.0 * self.num_attention_heads * self.head_dim
        full, windowed = (
            _count_visible_keys(0, prompt, window)
            + group * _count_visible_keys(prompt, response, window)
            for window in (None, self.sliding_window)
        )
        num_windowed = 0 if self.sliding_window is None else (self.num_hidden_layers + 1) // 2
        num_full = self.num_hidden_layers - num_windowed
        return linear + per_key * (num_full * full + num_windowed * windowed)


def _count_visible_keys(depth: int, number: int, window: int | None) -> float:
    """By that many tokens behind `depth` others, together."""
    first, last = depth + 1, depth + number
    if window is None or last <= window:
        return number * (first + last) / 2
    growing = max(0, window - depth)
    return growing * (first + window) / 2 + (number - growing) * window


def find_model_shape(name: str) -> ModelShape:
    """Of a checkpoint in the catalogue, or of one that is at hand.

    Raises:
        UnknownShapeError: it is in the catalogue without its sizes.
        ModelLoadError: it is in neither, or would be refused.
    """
    entry = find_entry(name.partition("@")[0])
    if entry is not None:
        return _shape_from_entry(entry)
    checkpoint = open_checkpoint(ModelConfig(name), weights=False)
    return _shape_from_config(name, checkpoint.family, checkpoint.config, checkpoint.max_length)


def _shape_from_entry(entry: CatalogEntry) -> ModelShape:
    sizes, window = entry.geometry, entry.attention.sliding_window
    found = {
        "hidden_size": sizes.hidden_size.value,
        "intermediate_size": sizes.intermediate_size.value,
        "num_hidden_layers": sizes.num_layers.value,
        "num_attention_heads": sizes.num_heads.value,
        "num_key_value_heads": sizes.num_kv_heads.value,
        "head_dim": sizes.head_dim.value,
        "vocab_size": sizes.vocab_size.value,
        "max_length": entry.recommended_max_length,
    }
    known = {field: value for field, value in found.items() if value is not None}
    if missing := sorted(found.keys() - known.keys()):
        raise UnknownShapeError(
            f"the catalogue does not know {', '.join(missing)} of {entry.id}; give a local folder"
        )
    return ModelShape(
        name=entry.id,
        family=entry.family,
        sliding_window=window.value if window else None,
        source="the catalogue",
        **known,
    )


def _shape_from_config(
    name: str, family: Family, config: Mapping[str, Any], max_length: int
) -> ModelShape:
    heads = int(config["num_attention_heads"])
    return ModelShape(
        name=name,
        family=family,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        vocab_size=int(config["vocab_size"]),
        max_length=max_length,
        sliding_window=config.get("sliding_window") if family == "gemma2" else None,
        source="its config.json",
    )
