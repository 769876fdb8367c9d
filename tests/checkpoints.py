"""Small random checkpoints with the true architectures and configs of the three families.

Weights are random but drawn so that rewards spread over several units, as trained ones do; the
chat templates are written for the tests with the markup of each family.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rm_core import ModelConfig, ModelLoadError
from rm_core.model.loading import load_model

Weights = dict[str, torch.Tensor]
PathOf = Callable[[str], Path]

LLAMA_TEMPLATE = (
    "{% if write_bos %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
)
QWEN3_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
GEMMA2_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)

_TEXTS = [
    "What is the capital of France? The capital of France is Paris, a city on the Seine.",
    "Jane has 12 apples and gives 4 to Mark. 12 - 4 = 8, so Jane has 8 apples left.",
    "def add(a, b):\n    return a + b\n\nThis function adds two numbers and returns the sum.",
    "I am sorry, but I cannot help with that. Could you tell me more about your question?",
    "中国的首都是北京。今天天气很好，我们去公园散步吧。",
    "Here is a list:\n- one\n- two\n- three\nThank you! 😀 Hope this helps.",
]


@dataclass(frozen=True)
class Spec:
    """What to build."""

    family: str = "qwen3"
    template_bos: bool = False
    tokenizer_bos: bool = False
    pad: str = "<pad>"
    tied: bool = False
    max_positions: int = 2048
    seed: int = 0


SPECS = {
    "llama-v0.1": Spec("llama", template_bos=False, tokenizer_bos=True),
    "llama-v0.2": Spec("llama", template_bos=True, tokenizer_bos=True),
    "llama-no-bos": Spec("llama", template_bos=False, tokenizer_bos=False),
    "llama-template-bos-only": Spec("llama", template_bos=True, tokenizer_bos=False),
    "llama-pad-is-eos": Spec("llama", template_bos=True, tokenizer_bos=True, pad="<|eot_id|>"),
    "qwen3": Spec("qwen3"),
    "qwen3-tied": Spec("qwen3", tied=True),
    "qwen3-pad-is-eos": Spec("qwen3", pad="<|im_end|>"),
    "gemma2": Spec("gemma2", template_bos=True, tokenizer_bos=True),
    "gemma2-tied": Spec("gemma2", template_bos=True, tokenizer_bos=True, tied=True),
}

_MARKERS = {
    "llama": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "gemma2": ["<start_of_turn>", "<end_of_turn>"],
}
_EOS = {"llama": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma2": "<eos>"}


def build_tokenizer(spec: Spec) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the markers and the template of the family."""
    specials = ["<pad>", "<bos>", "<eos>", *_MARKERS[spec.family]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    if spec.tokenizer_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A",
            pair="<bos> $A <bos> $B",
            special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
        )
    template = {"llama": LLAMA_TEMPLATE, "qwen3": QWEN3_TEMPLATE, "gemma2": GEMMA2_TEMPLATE}
    text = template[spec.family].replace("write_bos", "true" if spec.template_bos else "false")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>" if spec.tokenizer_bos or spec.template_bos else None,
        eos_token=_EOS[spec.family],
        pad_token=spec.pad,
        chat_template=text,
    )


def build_model(spec: Spec, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random model of the family, scaled down, float32."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": spec.max_positions,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": spec.tied,
        "initializer_range": 0.12,
    }
    torch.manual_seed(spec.seed)
    if spec.family == "llama":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
        model = LlamaForSequenceClassification(LlamaConfig(**common, rope_parameters=rope))
    elif spec.family == "gemma2":
        config = Gemma2Config(
            **common,
            sliding_window=32,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=16,
        )
        config._attn_implementation = "eager"
        model = Gemma2ForSequenceClassification(config)
    else:
        model = Qwen3ForSequenceClassification(Qwen3Config(**common))
    with torch.no_grad():
        model.score.weight.normal_(std=1.0)
    return model.eval()


def build_checkpoint(folder: Path, spec: Spec) -> Path:
    """Write a whole checkpoint and return its folder."""
    tokenizer = build_tokenizer(spec)
    build_model(spec, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Entries of the config, in addition to the common ones, of architectures beyond the families.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "mistral": {"sliding_window": 32},
    "gemma": {},
    "gemma3_text": {
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 16,
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 32, "layer_types": [*["sliding_attention"] * 3, "full_attention"]},
    "phi3": {"sliding_window": None},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4": {"partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": 32},
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    "diffllama": {},
    "falcon": {"num_key_value_heads": None, "head_dim": None},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
}


def build_decoder(
    folder: Path, model_type: str, kind: Any = AutoModelForSequenceClassification, **entries: Any
) -> PreTrainedModel:
    """Write a random float32 checkpoint of a class of transformers; return its model.

    Args:
        folder: folder to write.
        model_type: name of the architecture's config.
        kind: auto class of the model.
        entries: further entries of the config.
    """
    tokenizer = build_tokenizer(SPECS["qwen3"])
    config = {
        "vocab_size": len(tokenizer) + 8,  # transformers adds tokens to those of some families
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.12,
    }
    config |= ARCHITECTURES.get(model_type, {}) | entries
    optional = ("num_key_value_heads", "head_dim")
    config = {k: v for k, v in config.items() if v is not None or k not in optional}
    torch.manual_seed(0)
    model = kind.from_config(
        AutoConfig.for_model(model_type, **config), attn_implementation="eager"
    ).eval()
    if hasattr(model, "score"):
        with torch.no_grad():
            model.score.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes: object) -> None:
    """Change entries of config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    file.write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[Weights], object]) -> None:
    """Change the weights of an unsharded checkpoint."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def set_one(name: str, value: float) -> Callable[[Weights], object]:
    """An edit that gives the last number of a tensor another value."""
    return lambda weights: weights[name].view(-1)[-1:].fill_(value)


def refusal(folder: Path | str, **settings: Any) -> str:
    """What loading a checkpoint is refused with."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(ModelConfig(str(folder), device="cpu", **settings))
    assert "Traceback" not in caught.value.detail
    return caught.value.detail


__all__ = [
    "ARCHITECTURES",
    "SPECS",
    "PathOf",
    "Spec",
    "build_checkpoint",
    "build_decoder",
    "build_model",
    "build_tokenizer",
    "edit_config",
    "edit_weights",
    "refusal",
    "replace",
    "set_one",
]
