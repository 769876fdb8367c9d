"""A model that costs next to nothing: the demo model's tokenizer and template, one narrow layer.

With it the service answers so many requests a second that its own cost stands out. Its weights are
random, and so are its rewards.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from rm_core import seeds_dir


def build_tiny(folder: Path, seed: int = 0, **changes: int) -> Path:
    """Write the checkpoint; `changes` are fields of its configuration."""
    demo = seeds_dir() / "demo"
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_labels": 1,
    }
    config = Qwen3Config.from_pretrained(demo, **(sizes | changes))
    torch.manual_seed(seed)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder)
    return folder
