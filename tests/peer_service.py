"""A service of several models that many tests share, and what it gives natively."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from serve.client import ScoringClient

QUESTION = "Jane has 12 apples and gives 4 to Mark. How many has she left?"
# The small models' tokenizer has one token per letter, so some answers are too long for `tiny`.
TINY_MAX_LENGTH = 1024
ANSWERS = ["12 - 4 = 8, so Jane has 8 apples left.", "Jane has 9 apples."]


def conversation(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Served:
    """A running service, and the folders of its models `demo`, `llama` and `tiny`."""

    url: str
    folders: dict[str, Path]

    def native(self, model: str, *answers: str) -> list[float]:
        with ScoringClient(self.url, model) as client:
            return client.score([conversation(answer) for answer in answers or ANSWERS])

    def tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.folders[model])

    def rendered(self, model: str, *answers: str) -> list[str]:
        return [
            self.tokenizer(model).apply_chat_template(conversation(answer), tokenize=False)
            for answer in answers or ANSWERS
        ]

    def prompt(self, model: str) -> str:
        """Rendered, ready for the answer."""
        start = self.rendered(model, "ANSWER")[0].split("ANSWER")[0]
        return start
