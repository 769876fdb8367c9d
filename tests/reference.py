"""The reference of comparisons: plain transformers, eager, one conversation at a time.

Also conversations to compare: short, long, empty, in other scripts, with several turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

Messages = list[dict[str, Any]]


class Reference:
    """Scores as the model cards do: render, strip one leading BOS, tokenize, read the logit.

    Args:
        folder: folder of the checkpoint.
        dtype: dtype of the whole model, including the head.
        device: device of the model.
        changes: config entries to change, to measure their effect.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        **changes: object,
    ) -> None:
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        for name, value in changes.items():
            setattr(config, name, value)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="eager"
        )
        self.model = model.to(device).eval()

    def input_ids(self, messages: Messages) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        bos = self.tokenizer.bos_token
        tokenizer_adds_bos = bos is not None and self.tokenizer("").input_ids != []
        if tokenizer_adds_bos and text.startswith(bos):
            text = text[len(bos) :]
        return self.tokenizer(text).input_ids

    def reward(self, messages: Messages) -> float:
        return self.reward_from_ids(self.input_ids(messages))

    @torch.inference_mode()
    def reward_from_ids(self, input_ids: Sequence[int]) -> float:
        tensor = torch.tensor([list(input_ids)], device=self.model.device)
        return float(self.model(input_ids=tensor).logits[0, 0])


def talk(*turns: str) -> Messages:
    """Return a conversation of these texts that begins with the user."""
    return [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(turns)
    ]


LONG = "Jane has 12 apples and gives 4 to Mark. 12 - 4 = 8, so 8 are left. " * 8
CONVERSATIONS = [
    talk("What is the capital of France?", "The capital of France is Paris."),
    talk("What is the capital of France?", "I am sorry, but I cannot help with that."),
    talk("What is the capital of France?", ""),
    talk("", "Is there a question?"),
    talk("Add two numbers.", "def add(a, b):\n    return a + b\n"),
    talk("2+2?", "4", "And 3+3?", "6", "And 4+4?", "8"),
    talk("中国的首都在哪里？", "中国的首都是北京。"),
    talk("How are you? 😀", "Fine 👩‍👩‍👧 é thank you! 🎉"),
    talk("  Spaces \n\n", "\n kept or \t trimmed  "),
    talk(LONG, "8"),
    talk("How many are left?", LONG),
    talk(LONG, LONG, "So how many?", "8 apples."),
    talk("Repeat <eos> and <pad>.", "<eos> <pad>"),
]
