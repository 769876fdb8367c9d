"""Small random vision-language reward models with the true architectures, in both layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import SPECS, build_tokenizer
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from rm_core.kinds import VISION_LANGUAGE

IMAGE_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Default system line and order of parts as in the template of Qwen2.5-VL.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 2048,
    "max_window_layers": 3,
}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "in_channels": 3},
    # Four patches in a window, so that small images have several.
    "qwen2_5_vl": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        "in_chans": 3,
    },
    # Positions of a grid of 6 x 6 patches, so that they are interpolated for every image.
    "qwen3_vl": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
        "in_channels": 3,
    },
}
_MODELS: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
_ACTIVATIONS = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu", "qwen3_vl": "gelu_pytorch_tanh"}
PATCH_SIZES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 36 * 28 * 28
STANDARD_DEVIATION = 0.08


def build_vision_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of Qwen2.5-VL, whose vocabulary is small."""
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    tokenizer.add_tokens(IMAGE_TOKENS, special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_vision_model(
    folder: Path,
    family: str = "qwen2_5_vl",
    layout: str = "old",
    head: str | None = "beside",
    *,
    num_shards: int = 1,
    tower: Mapping[str, Any] | None = None,
    max_pixels: int = MAX_PIXELS,
    standard_deviation: float = STANDARD_DEVIATION,
    **entries: Any,
) -> Path:
    """Write a random float32 vision-language reward model; the weights depend on `family` alone.

    Args:
        folder: folder to write.
        family: `qwen2_vl`, `qwen2_5_vl` or `qwen3_vl`.
        layout: `old` for names and config of the family's first transformers, `new` for those of 5.
        head: where the value head is: `beside` or `beside, no prefix` (value_head.safetensors),
            `inside` the weights, or None for a plain model.
        num_shards: number of weight files.
        tower: further entries of the tower's config.
        max_pixels: largest size of a resized image.
        standard_deviation: of the matrices.
        entries: further entries of the text decoder's config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_vision_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS}
    vision = {
        "depth": 4,
        "hidden_act": _ACTIVATIONS[family],
        "num_heads": 4,
        "patch_size": PATCH_SIZES[family],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **_TOWERS[family],
        **(tower or {}),
    }
    config = {
        "architectures": [VISION_LANGUAGE[family]],
        "model_type": family,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": vision,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.51.3",
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": len(tokenizer) + 8,
        **TEXT,
        **entries,
    }
    if family == "qwen3_vl":
        config = _nest_text_config(config)
    (folder / "config.json").write_text(json.dumps(config))
    model_config = AutoConfig.from_pretrained(folder)
    if layout == "new":
        model_config.architectures = config["architectures"]
        model_config.save_pretrained(folder)
    torch.manual_seed(0)
    model = _MODELS[family](model_config).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=standard_deviation)
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if layout == "old" and family != "qwen3_vl":
        weights = {_get_old_name(name): tensor for name, tensor in weights.items()}
    hidden_size = model_config.get_text_config().hidden_size
    _write_weights(folder, weights, head, num_shards, hidden_size)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": max_pixels,
        "patch_size": PATCH_SIZES[family],
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    if family == "qwen3_vl":
        half = [0.5, 0.5, 0.5]
        processor |= {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "image_mean": half,
            "image_std": half,
            "size": {
                "shortest_edge": processor.pop("min_pixels"),
                "longest_edge": processor.pop("max_pixels"),
            },
        }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def build_exported_text_model(folder: Path, head: str = "beside") -> Path:
    """Write a text reward model as LLaMA-Factory exports it: Qwen2 and a file with the head."""
    tokenizer = build_tokenizer(SPECS["qwen3"])
    config = Qwen2Config(
        **{**TEXT, "rope_theta": 10_000.0},
        vocab_size=len(tokenizer) + 8,
        tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"],
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=STANDARD_DEVIATION)
    model.save_pretrained(folder)
    write_value_head(folder, head)
    tokenizer.save_pretrained(folder)
    return folder


def make_value_head(
    prefix: str = "v_head.", hidden_size: int = TEXT["hidden_size"]
) -> dict[str, torch.Tensor]:
    """A random value head in float32, as trl names it."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{prefix}summary.weight": torch.randn(1, hidden_size, generator=generator),
        f"{prefix}summary.bias": torch.randn(1, generator=generator),
    }


def write_value_head(folder: Path, head: str, hidden_size: int = TEXT["hidden_size"]) -> None:
    """Write value_head.safetensors, with names as `build_vision_model` describes."""
    prefix = "" if head == "beside, no prefix" else "v_head."
    save_file(
        make_value_head(prefix, hidden_size), folder / "value_head.safetensors", {"format": "pt"}
    )


def _nest_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as Qwen3-VL has had it from the start, with heads of another size."""
    outer = ("architectures", "model_type", "tie_word_embeddings", "transformers_version")
    is_outer = {key: key in outer or key.endswith("_token_id") for key in config}
    text = {key: value for key, value in config.items() if not is_outer[key]}
    vision_config = text.pop("vision_config")
    text |= {
        "model_type": "qwen3_vl_text",
        "head_dim": 32,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
        },
    }
    outer_config = {key: value for key, value in config.items() if is_outer[key]}
    return {**outer_config, "text_config": text, "vision_config": vision_config}


def _get_old_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _write_weights(
    folder: Path,
    weights: dict[str, torch.Tensor],
    head: str | None,
    num_shards: int,
    hidden_size: int,
) -> None:
    if head == "inside":
        weights |= make_value_head(hidden_size=hidden_size)
    elif head is not None:
        write_value_head(folder, head, hidden_size)
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(weights)
    files = [f"model-{i:05}-of-{num_shards:05}.safetensors" for i in range(1, num_shards + 1)]
    for i, file in enumerate(files):
        shard = {name: weights[name] for name in names[i::num_shards]}
        save_file(shard, folder / file, {"format": "pt"})
    index = {name: files[i % num_shards] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
