"""What is posted: conversations out of the sample pairs' words, no two alike unless they should be.

Everything is drawn from a seed, so that two runs post the same.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from rm_core.verification import sample_conversations

Conversation = list[dict[str, Any]]

_POST_SIZES = (1, 1, 1, 1, 2, 2, 4, 8, 16, 32, 64, 200)


class Writer:
    """Writes conversations that nobody has posted before.

    Args:
        seed: another one, other texts.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._samples = [list(messages) for _, messages in sample_conversations()]
        self._words = [
            word
            for messages in self._samples
            for message in messages
            for word in message["content"].split()
        ]
        # In front of every text: it makes them differ, and from other seeds' texts too.
        self._numbers = (f"{seed}/{number}" for number in itertools.count())

    def text(self, num_bytes: int) -> str:
        """Words, about so many bytes of UTF-8."""
        words = [next(self._numbers)]
        size = len(words[0])
        while size < num_bytes:
            words.append(self._chance.choice(self._words))
            size += len(words[-1].encode()) + 1
        return " ".join(words)

    def conversation(self, num_bytes: int) -> Conversation:
        """A question and an answer that nobody has seen, half of the bytes each."""
        return talk(self.text(num_bytes // 2), self.text(num_bytes // 2))

    def group(self, size: int, num_bytes: int) -> list[Conversation]:
        """Answers to one prompt; sometimes with earlier turns."""
        prompt = [{"role": "user", "content": self.text(num_bytes // 2)}]
        if self._chance.random() < 0.3:
            prompt = [*self._chance.choice(self._samples), *prompt]
        return [
            [*prompt, {"role": "assistant", "content": self.text(num_bytes // 2)}]
            for _ in range(size)
        ]

    def pool(
        self, num_groups: int = 24, group: int = 10, num_bytes: int = 300
    ) -> list[Conversation]:
        """The sample pairs, and groups of answers that share their prompts."""
        groups = (self.group(group, num_bytes) for _ in range(num_groups))
        return [*self._samples, *itertools.chain.from_iterable(groups)]


def talk(question: str, answer: str) -> Conversation:
    """One question, one answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def picks(chance: random.Random, num_conversations: int) -> Iterator[list[int]]:
    """Without end: which conversations of a pool go into the next post, 1 to 200 of them.

    Either neighbours, which share prompts, or any; then often the same one several times.
    """
    while True:
        size = chance.choice(_POST_SIZES)
        if chance.random() < 0.5:
            start = chance.randrange(num_conversations)
            yield [(start + i) % num_conversations for i in range(size)]
        else:
            yield [chance.randrange(num_conversations) for _ in range(size)]


def body_of(conversations: Sequence[Conversation]) -> bytes:
    """The body of a `/v1/score`."""
    return json.dumps({"conversations": list(conversations)}).encode()
