"""The four models of `make gpu-check`: true shapes, random weights, created on the device itself.

Weights are drawn so that activations stay near 1, attention concentrates on a few dozen of
thousands of keys, and rewards spread over several units: a wrong mask then changes a reward by more
than rounding. No file is read or written. Start with `SHAPES` and `build`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rm_core.attention import AttentionBackend, AttentionChoice, install_packed_attention
from rm_core.compilation import CompilationChoice
from rm_core.heads import LinearHead
from rm_core.model.loading import LoadedModel
from rm_core.model.readout_layer import ReadoutLayer

PAD = 0
# Standard deviation of raw attention scores, and of rewards.
_SCORES, _REWARDS = 2.0, 5.0
_CLASSES = {
    "llama": (LlamaConfig, LlamaForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
    "gemma2": (Gemma2Config, Gemma2ForSequenceClassification),
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_QWEN3_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Shape:
    """Shape of a model.

    Attributes:
        name: name in the table.
        family: family of the architecture.
        sizes: vocabulary, hidden size, MLP, layers, heads, key-value heads.
        extra: further entries of the config.
    """

    name: str
    family: str
    sizes: tuple[int, int, int, int, int, int]
    extra: dict[str, Any] = field(default_factory=dict)

    def config(self, tiny: bool = False, window: int = 4096) -> Any:
        """Return the config of transformers.

        Args:
            tiny: whether to scale the architecture down to few weights, for dry runs.
            window: sliding window of the layers that have one.
        """
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        names += ("num_attention_heads", "num_key_value_heads")
        entries = dict(zip(names, self.sizes, strict=True)) | {"head_dim": 128} | self.extra
        if self.family == "gemma2":
            entries["sliding_window"] = window
        entries |= _TINY if tiny else {}
        config = _CLASSES[self.family][0](
            **entries, num_labels=1, pad_token_id=PAD, bos_token_id=1, eos_token_id=2
        )
        config._attn_implementation = "eager"
        return config


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "Qwen3-0.6B",
            "qwen3",
            (151_936, 1024, 3072, 28, 16, 8),
            {"max_position_embeddings": 40_960, "rope_parameters": _QWEN3_ROPE},
        ),
        Shape(
            "Llama-3.1-8B",
            "llama",
            (128_257, 4096, 14_336, 32, 32, 8),
            {
                "max_position_embeddings": 131_072,
                "rms_norm_eps": 1e-5,
                "rope_parameters": _LLAMA3_ROPE,
            },
        ),
        Shape(
            "Gemma-2-27B",
            "gemma2",
            (256_000, 4608, 36_864, 46, 32, 16),
            {
                "max_position_embeddings": 8192,
                "query_pre_attn_scalar": 144,
                # 50 in the checkpoint, where scores are larger; 5 has the same effect here.
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 30.0,
            },
        ),
        Shape(
            "Qwen3-8B",
            "qwen3",
            (151_936, 4096, 12_288, 36, 32, 8),
            {"max_position_embeddings": 40_960, "rope_parameters": _QWEN3_ROPE},
        ),
    )
}


def count_bytes(config: Any) -> int:
    """Return the size of the weights in bfloat16."""
    head_dim, hidden = config.head_dim, config.hidden_size
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = hidden * (heads * head_dim + 3 * config.intermediate_size)
    return 2 * (config.num_hidden_layers * layer + config.vocab_size * hidden)


def build(shape: Shape, config: Any, device: torch.device) -> Any:
    """Build a random bfloat16 classifier on the device, its last layer prepared for readouts."""
    with _default_dtype(torch.bfloat16), device:
        model = _CLASSES[shape.family][1](config)
    _randomize(model, shape.family)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    layers = model.model.layers
    layers[-1] = ReadoutLayer(layers[-1])
    install_packed_attention(model)
    return model.eval().requires_grad_(False)


def build_loaded_model(
    model: Any, name: str, backend: AttentionBackend, deterministic: bool = False
) -> LoadedModel:
    """Build a model for `forward_batch`, without checkpoint and tokenizer, which are not used."""
    values = {
        "model": model,
        "head": LinearHead(model.score.weight.float(), None, description="score"),
        "pad_token_id": PAD,
        "attention": AttentionChoice(name, "requested by the check"),
        "backend": backend,
        "deterministic": deterministic,
        "compilation": CompilationChoice(False, "for comparison"),
        "devices": (model.device,),
    }
    return LoadedModel(**{item.name: values.get(item.name) for item in fields(LoadedModel)})


def cast(model: Any, dtype: torch.dtype) -> None:
    """Change the dtype of the weights only: the rotary frequencies stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def _randomize(model: Any, family: str) -> None:
    torch.manual_seed(0)
    hidden = model.config.hidden_size
    for name, weight in model.named_parameters():
        module = name.split(".")[-2]
        if module in ("q_norm", "k_norm"):
            weight.normal_(_SCORES**0.5, 0.1)
        elif weight.dim() == 1:
            weight.normal_(0.0 if family == "gemma2" else 1.0, 0.1)
        elif module == "embed_tokens":  # Gemma-2 multiplies them by the root of the hidden size
            weight.normal_(0.0, hidden**-0.5 if family == "gemma2" else 1.0)
        elif module == "score":
            weight.normal_(0.0, _REWARDS * hidden**-0.5)
        else:
            factor = _SCORES**0.5 if module in ("q_proj", "k_proj") and family != "qwen3" else 1.0
            weight.normal_(0.0, factor * weight.shape[1] ** -0.5)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
