"""Rewards of plain transformers for conversations with images, one at a time or padded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from rm_core.inputs.conversations import get_images


class PlainVisionModel:
    """transformers' own model and image processor, and the value head beside them.

    Args:
        folder: checkpoint of `tests/vision.py` with value_head.safetensors.
        attention: transformers' attention.
    """

    def __init__(self, folder: Path, attention: str = "eager") -> None:
        loaded = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        )
        self.model: Any = loaded.eval().model
        self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        head = {k.removeprefix("v_head."): v for k, v in _read_head(folder).items()}
        self._weight, self._bias = head["summary.weight"], head["summary.bias"]

    def encode(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the inputs of the model; its placeholders are repeated in the text."""
        images = [Image.open(io.BytesIO(source)) for source, _ in get_images(messages)]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        inputs: dict[str, torch.Tensor] = {}
        if images:
            inputs |= self._processor(images=images, return_tensors="pt")
            counts = iter((inputs["image_grid_thw"].prod(-1) // 4).tolist())
            first, *others = text.split("<|image_pad|>")
            text = first + "".join("<|image_pad|>" * next(counts) + other for other in others)
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        placeholder = self._tokenizer.convert_tokens_to_ids("<|image_pad|>")
        types = {"mm_token_type_ids": (ids == placeholder).int()} if images else {}
        return {**inputs, "input_ids": ids, **types}

    def score(self, messages: list[dict[str, Any]], **changes: torch.Tensor) -> float:
        """Return the reward of one conversation."""
        return self._score({**self.encode(messages), **changes})[0]

    def score_padded(self, conversations: Sequence[list[dict[str, Any]]]) -> list[float]:
        """Return the rewards of conversations, all with images, as one batch padded right."""
        encoded = [self.encode(messages) for messages in conversations]
        inputs = {
            name: torch.cat([inputs[name] for inputs in encoded])
            for name in ("pixel_values", "image_grid_thw")
        }
        rows = {name: [e[name][0] for e in encoded] for name in ("input_ids", "mm_token_type_ids")}
        rows["attention_mask"] = [torch.ones_like(row) for row in rows["input_ids"]]
        padded = {name: pad_sequence(row, batch_first=True) for name, row in rows.items()}
        return self._score(inputs | padded)

    @torch.inference_mode()
    def _score(self, inputs: dict[str, torch.Tensor]) -> list[float]:
        self.model.rope_deltas = None  # of the conversation before
        hidden = self.model(**inputs, use_cache=False).last_hidden_state
        ids = inputs["input_ids"]
        last = inputs.get("attention_mask", torch.ones_like(ids)).sum(dim=1) - 1
        read = hidden[torch.arange(len(ids)), last].float()
        rewards: list[float] = (read @ self._weight[0] + self._bias[0]).tolist()
        return rewards

    def score_all(self, conversations: Sequence[list[dict[str, Any]]]) -> list[float]:
        """Return the rewards of conversations, computed one at a time."""
        return [self.score(messages) for messages in conversations]


def _read_head(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "value_head.safetensors")
    return tensors
