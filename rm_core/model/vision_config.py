"""Reads how a vision-language model turns images into tokens, and checks that its files agree.

transformers fills what config.json lacks with defaults and computes rotary embeddings of wrong
sections without an error, so that every number that images depend on is checked here. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.errors import ModelLoadError
from rm_core.kinds import VISION_LANGUAGE
from rm_core.model.checkpoint_files import read_json
from rm_core.text import quote

IMAGE_TOKENS: Mapping[str, str] = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}
"""Tokens in rendered chats, each with the key of its id in config.json and in `VisionConfig`."""
# What transformers uses where config.json lacks a key.
_DEFAULT_IDS = (151_655, 151_656, 151_652, 151_653)
_DEFAULT_PATCH_SIZE, _DEFAULT_MERGE_SIZE, _DEFAULT_TEMPORAL_SIZE = 14, 2, 2
_DEFAULT_SECTIONS = [16, 24, 24]
_QWEN3_PATCH_SIZE, _QWEN3_SECTIONS, _QWEN3_HEAD_DIM = 16, [24, 20, 20], 128
_QWEN3_DEPTH, _QWEN3_DEEPSTACK_LAYERS = 27, [8, 16, 24]
# Largest size of each number in `vision_config`, to refuse what would take minutes to build.
_MAX_SIZES = {
    "depth": 1_000,
    "embed_dim": 1 << 16,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "mlp_ratio": 1 << 10,
    "num_heads": 1 << 10,
    "num_position_embeddings": 1 << 20,
    "out_hidden_size": 1 << 16,
    "patch_size": 1 << 10,
    "spatial_merge_size": 1 << 5,
    "temporal_patch_size": 1 << 5,
    "window_size": 1 << 16,
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """How a vision-language model turns an image into tokens."""

    image_token_id: int  # placeholder of an image, repeated for each of its tokens
    video_token_id: int  # placeholder of a video
    vision_start_token_id: int  # token before the placeholders
    vision_end_token_id: int  # token after the placeholders
    patch_size: int  # width and height of a patch, in pixels
    spatial_merge_size: int  # a token has this number of patches in each direction
    temporal_patch_size: int  # frames of a patch; an image is repeated for each


def merge_text_config(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the keys of the text decoder at the top.

    transformers writes them there up to version 4.51, and into `text_config` since. A config of a
    text model is unchanged.
    """
    listed, family = config.get("architectures"), config.get("model_type")
    if not isinstance(family, str) or family not in VISION_LANGUAGE:
        architecture = str(listed[0]) if isinstance(listed, list) and listed else "a model"
        if architecture.endswith("ForConditionalGeneration") or "vision_config" in config:
            raise ModelLoadError(
                f"{file} describes {architecture[:80]} (model_type {quote(family, 80)}), which is "
                "not a supported vision-language model; supported: "
                + ", ".join(VISION_LANGUAGE.values())
            )
        return dict(config)
    text_config = config.get("text_config")
    if text_config is None:
        return dict(config)
    if not isinstance(text_config, dict):
        raise ModelLoadError(
            f"text_config of {file} is {quote(text_config, 80)}; it must be an object: correct it, "
            "or download the file again"
        )
    outer = {key: config[key] for key in ("model_type", "architectures") if key in config}
    return {**config, **text_config, **outer}


def read_vision_config(folder: Path, config: Mapping[str, Any]) -> VisionConfig | None:
    """Return how a checkpoint turns images into tokens; None for a model that reads text only.

    The config is the result of `merge_text_config`, checked by `check_config`.
    """
    if config.get("model_type") not in VISION_LANGUAGE:
        return None
    file = folder / "config.json"
    sizes = config.get("vision_config")
    if not isinstance(sizes, dict):
        raise ModelLoadError(
            f"{file} has no vision_config object, and transformers would build a vision tower of "
            "default sizes; download the file again"
        )
    for key, largest in _MAX_SIZES.items():
        if key in sizes and not (type(sizes[key]) is int and 1 <= sizes[key] <= largest):
            raise ModelLoadError(
                f"{key} in vision_config of {file} is {quote(sizes[key], 80)}; it must be an "
                f"integer from 1 to {largest:,}: correct it, or download the file again"
            )
    ids = dict(zip(IMAGE_TOKENS.values(), _DEFAULT_IDS, strict=True))
    vision = VisionConfig(
        **{key: config.get(key, default) for key, default in ids.items()},
        patch_size=sizes.get(
            "patch_size", _QWEN3_PATCH_SIZE if _is_qwen3(config) else _DEFAULT_PATCH_SIZE
        ),
        spatial_merge_size=sizes.get("spatial_merge_size", _DEFAULT_MERGE_SIZE),
        temporal_patch_size=sizes.get("temporal_patch_size", _DEFAULT_TEMPORAL_SIZE),
    )
    _check_ids(file, config, vision)
    _check_sections(file, config)
    _check_tower(file, config, sizes, vision)
    if _is_qwen3(config):
        _check_deepstack_layers(file, config, sizes)
    _check_processor(folder, vision)
    return vision


def read_image_processor_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that says how images are resized, and its content.

    transformers writes it to preprocessor_config.json up to version 4, and into
    processor_config.json since, which it prefers.
    """
    if (file := folder / "processor_config.json").exists():
        content = read_json(file).get("image_processor")
        if isinstance(content, dict):
            return file, content
    file = folder / "preprocessor_config.json"
    if not file.exists():
        raise ModelLoadError(
            f"{folder} has no {file.name}, which says how images are resized; download it, or copy "
            "it from the base model"
        )
    return file, read_json(file)


def _check_ids(file: Path, config: Mapping[str, Any], vision: VisionConfig) -> None:
    rows = config.get("vocab_size")
    values = {key: getattr(vision, key) for key in IMAGE_TOKENS.values()}
    for key, value in values.items():
        if type(value) is not int or value < 0 or (rows is not None and value >= rows):
            raise ModelLoadError(
                f"{key} of {file} is {quote(value, 80)}; it must be the id of a token, below the "
                f"{rows} rows of the embedding (vocab_size): correct it, or download the file again"
            )
    if len(set(values.values())) < len(values):
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        raise ModelLoadError(
            f"{file} gives one id to several tokens ({listed}); correct it, or download the file "
            "again"
        )


def _is_qwen3(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "qwen3_vl")


def _check_sections(file: Path, config: Mapping[str, Any]) -> None:
    """Check how the rotary frequencies are divided among time, height and width."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    default = _QWEN3_SECTIONS if _is_qwen3(config) else _DEFAULT_SECTIONS
    sections = (config.get(name) or {}).get("mrope_section", default)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if _is_qwen3(config):
        head_dim = config.get("head_dim", _QWEN3_HEAD_DIM)
    half = head_dim // 2
    if not (
        isinstance(sections, list)
        and len(sections) == 3
        and all(type(n) is int and n > 0 for n in sections)
        and sum(sections) == half
    ):
        raise ModelLoadError(
            f"mrope_section in {name} of {file} is {quote(sections, 80)}; it must have three "
            f"integers above 0 whose sum is {half}, half the size of an attention head: correct "
            "it, or download the file again"
        )
    # Qwen3-VL takes frequencies 1, 4, 7 ... for the height and 2, 5, 8 ... for the width.
    if _is_qwen3(config) and any(3 * n - 3 + i >= half for i, n in enumerate(sections) if i):
        raise ModelLoadError(
            f"mrope_section in {name} of {file} is {sections}; height and width take every third "
            f"of {half} frequencies, which do not suffice: correct it, or download the file again"
        )


def _check_deepstack_layers(
    file: Path, config: Mapping[str, Any], sizes: Mapping[str, Any]
) -> None:
    """Check which layers of the tower have features that the first layers of the decoder add.

    The decoder's last layer gets none, since it runs on the readout tokens only.
    """
    layers = sizes.get("deepstack_visual_indexes", _QWEN3_DEEPSTACK_LAYERS)
    depth, num_layers = sizes.get("depth", _QWEN3_DEPTH), config["num_hidden_layers"]
    if not (
        isinstance(layers, list)
        and all(type(layer) is int and 0 <= layer < depth for layer in layers)
        and layers == sorted(set(layers))
        and len(layers) < num_layers
    ):
        raise ModelLoadError(
            f"deepstack_visual_indexes in vision_config of {file} is {quote(layers, 80)}; it must "
            f"have increasing integers from 0 to {depth - 1}, layers of the vision tower, fewer "
            f"than the text decoder's {num_layers} layers: correct it, or download the file again"
        )


def _check_tower(
    file: Path, config: Mapping[str, Any], sizes: Mapping[str, Any], vision: VisionConfig
) -> None:
    """Check that the tower's output fits the decoder, and that a window has at least one token."""
    name = "hidden_size" if config["model_type"] == "qwen2_vl" else "out_hidden_size"
    if sizes.get(name, 3_584) != config["hidden_size"]:
        raise ModelLoadError(
            f"{name} in vision_config of {file} is {sizes.get(name, 3_584)}, but the text decoder "
            f"has hidden_size {config['hidden_size']}; the two must be equal"
        )
    width = sizes.get("embed_dim", 1_280) if name == "hidden_size" else sizes.get("hidden_size")
    heads = sizes.get("num_heads", 16)
    if width is not None and width % (4 * heads):
        raise ModelLoadError(
            f"vision_config of {file} has num_heads {heads} for a width of {width}; the width must "
            "be a multiple of 4 x num_heads, since rows and columns have separate rotary pairs"
        )
    token = vision.patch_size * vision.spatial_merge_size
    if sizes.get("window_size", token) < token:
        raise ModelLoadError(
            f"window_size in vision_config of {file} is {sizes['window_size']}, but a token takes "
            f"{token} pixels (patch_size x spatial_merge_size); a window has at least one token"
        )


def _check_processor(folder: Path, vision: VisionConfig) -> None:
    file, processor = read_image_processor_config(folder)
    expected = {
        "patch_size": (vision.patch_size, _DEFAULT_PATCH_SIZE),
        "merge_size": (vision.spatial_merge_size, _DEFAULT_MERGE_SIZE),
        "temporal_patch_size": (vision.temporal_patch_size, _DEFAULT_TEMPORAL_SIZE),
    }
    for key, (size, default) in expected.items():
        if processor.get(key, default) != size:
            raise ModelLoadError(
                f"{key} of {file} is {quote(processor.get(key, default), 80)}, but the vision "
                f"tower of config.json has {size}; the processor belongs to another model: "
                "download both again"
            )
