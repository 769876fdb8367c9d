"""The shape of a checkpoint, and its numbers of parameters, bytes and operations.

The attributes are named as in transformers' configs, so that `rm_core.memory` accepts a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_core import ModelConfig, find_entry, open_checkpoint
from rm_core.catalog.entries import CatalogEntry
from rm_core.kinds import VISION_LANGUAGE
from rm_core.model.placement import get_stage
from serve.errors import UnknownShapeError

# Number of norms of hidden size in a layer, if not 2; Qwen3 has two more, each of head size.
_NORMS = {"gemma2": 4}
# Families whose projections to queries, keys and values have biases.
_BIASED = ("qwen2", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder with a reward head; `sliding_window` applies to every other layer.

    `num_vision_parameters` is 0 for a model that reads text only.
    """

    name: str
    family: str
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
    num_vision_parameters: int = 0

    @property
    def linear_weights(self) -> int:
        """Weights of the linear modules of one layer, which multiply every token."""
        query_size = self.num_attention_heads * self.head_dim
        key_size = self.num_key_value_heads * self.head_dim
        return self.hidden_size * (2 * query_size + 2 * key_size + 3 * self.intermediate_size)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, including norms and biases."""
        head_norms = 2 * self.head_dim if self.family in ("qwen3", "qwen3_vl") else 0
        num_biased_heads = self.num_attention_heads + 2 * self.num_key_value_heads
        biases = num_biased_heads * self.head_dim if self.family in _BIASED else 0
        norms = _NORMS.get(self.family, 2) * self.hidden_size + head_norms
        return self.linear_weights + norms + biases

    @property
    def num_parameters(self) -> int:
        """Parameters of embedding, layers, final norm, one row of the head and vision tower."""
        outside_layers = (self.vocab_size + 2) * self.hidden_size + self.num_vision_parameters
        return outside_layers + self.num_hidden_layers * self.layer_parameters

    def weight_bytes(self, itemsize: int, num_devices: int = 1) -> int:
        """Return the bytes of the weights on the fullest device."""
        layer_counts = [0] * num_devices
        for index in range(self.num_hidden_layers):
            layer_counts[get_stage(index, self.num_hidden_layers, num_devices)] += 1
        parameters = [count * self.layer_parameters for count in layer_counts]
        parameters[0] += self.vocab_size * self.hidden_size + self.num_vision_parameters
        parameters[-1] += 2 * self.hidden_size
        return max(parameters) * itemsize

    def count_group_flops(self, prompt: int, response: int, group: int) -> float:
        """Return the FLOPs of a prompt with several responses, the prompt computed once.

        Counts as `make gpu-check` does: 2 per weight and token, 4 per head channel, query and
        visible key; the last layer is counted in full.
        """
        num_tokens = prompt + group * response
        linear = 2.0 * self.linear_weights * self.num_hidden_layers * num_tokens
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
    """Return the total number of keys that `number` tokens after `depth` earlier ones attend to."""
    first, last = depth + 1, depth + number
    if window is None or last <= window:
        return number * (first + last) / 2
    growing = max(0, window - depth)
    return growing * (first + window) / 2 + (number - growing) * window


def find_model_shape(name: str) -> ModelShape:
    """Return the shape of a checkpoint in the catalogue, or of a local or downloadable one.

    Raises:
        UnknownShapeError: the catalogue has the checkpoint without its sizes.
        ModelLoadError: the checkpoint cannot be found, or would be refused.
    """
    entry = find_entry(name.partition("@")[0])
    if entry is not None:
        return _shape_from_entry(entry)
    checkpoint = open_checkpoint(ModelConfig(name), weights=False)
    return _shape_from_config(name, checkpoint.family, checkpoint.config, checkpoint.max_length)


def _shape_from_entry(entry: CatalogEntry) -> ModelShape:
    geometry, window = entry.geometry, entry.attention.sliding_window
    vision = geometry.vision_parameters
    sizes = {
        "hidden_size": geometry.hidden_size.value,
        "intermediate_size": geometry.intermediate_size.value,
        "num_hidden_layers": geometry.num_layers.value,
        "num_attention_heads": geometry.num_heads.value,
        "num_key_value_heads": geometry.num_kv_heads.value,
        "head_dim": geometry.head_dim.value,
        "vocab_size": geometry.vocab_size.value,
        "max_length": entry.recommended_max_length,
    }
    known = {field: value for field, value in sizes.items() if value is not None}
    if missing := sorted(sizes.keys() - known.keys()):
        raise UnknownShapeError(
            f"the catalogue does not know {', '.join(missing)} of {entry.id}; give a local folder"
        )
    return ModelShape(
        name=entry.id,
        family=entry.family,
        sliding_window=window.value if window else None,
        source="the catalogue",
        num_vision_parameters=vision.value or 0 if vision else 0,
        **known,
    )


def _shape_from_config(
    name: str, family: str, config: Mapping[str, Any], max_length: int
) -> ModelShape:
    num_heads = int(config["num_attention_heads"])
    return ModelShape(
        name=name,
        family=family,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=num_heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or num_heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // num_heads),
        vocab_size=int(config["vocab_size"]),
        max_length=max_length,
        sliding_window=config.get("sliding_window") if family == "gemma2" else None,
        source="its config.json",
        num_vision_parameters=_count_vision_parameters(config),
    )


def _count_vision_parameters(config: Mapping[str, Any]) -> int:
    """Count the parameters of a vision tower, with transformers' defaults for missing sizes."""
    if config["model_type"] not in VISION_LANGUAGE:
        return 0
    tower = config["vision_config"]
    if config["model_type"] == "qwen3_vl":
        return _count_qwen3_vision_parameters(tower, config["hidden_size"])
    is_qwen2 = config["model_type"] == "qwen2_vl"
    width = tower.get("embed_dim", 1_280) if is_qwen2 else tower.get("hidden_size", 3_584)
    values = 3 * tower.get("temporal_patch_size", 2) * tower.get("patch_size", 14) ** 2
    merged = width * tower.get("spatial_merge_size", 2) ** 2
    if is_qwen2:  # the MLP has two layers, and norms have biases
        mlp, norm = width * tower.get("mlp_ratio", 4), 2 * width
        in_mlp = 2 * width * mlp + mlp + width
    else:
        mlp, norm = tower.get("intermediate_size", 3_420), width
        in_mlp = 3 * width * mlp + 2 * mlp + width
    in_attention = 4 * width * (width + 1)
    in_merger = norm + merged * (merged + 1) + (merged + 1) * config["hidden_size"]
    in_layers = tower.get("depth", 32) * (in_attention + in_mlp + 2 * norm)
    return int(values * width + in_layers + in_merger)


def _count_qwen3_vision_parameters(tower: Mapping[str, Any], hidden_size: int) -> int:
    """Count the parameters of Qwen3-VL's tower; every linear layer and norm has a bias."""
    width, mlp = tower.get("hidden_size", 1_152), tower.get("intermediate_size", 4_304)
    values = 3 * tower.get("temporal_patch_size", 2) * tower.get("patch_size", 16) ** 2
    merged = width * tower.get("spatial_merge_size", 2) ** 2
    num_deepstack_layers = len(tower.get("deepstack_visual_indexes", (8, 16, 24)))
    in_embeddings = (values + 1 + tower.get("num_position_embeddings", 2_304)) * width
    in_layer = 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width
    in_merger = merged * (merged + 1) + (merged + 1) * hidden_size  # without its norm
    return int(
        in_embeddings
        + tower.get("depth", 27) * in_layer
        + (1 + num_deepstack_layers) * in_merger
        + 2 * width
        + num_deepstack_layers * 2 * merged
    )
