"""Conversations of random words, in which only finding the question's words again can help.

Real text lets a small model get along for long without learning to look words up in the question;
here nothing else is to be learnt, so that it learns this first.
"""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerFast

from seeds.demo.training.architecture import render
from seeds.demo.training.batches import GOOD, OTHER, Encoded


class MatchingMaker:
    """Makes groups of one answer that shares words with its question and one that does not."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, classes: list[int], seed: int) -> None:
        self._rng = random.Random(f"matching-{seed}")
        spellings: dict[int, list[int]] = {}
        for token_id, word in enumerate(classes):
            if word >= 0:
                spellings.setdefault(word, []).append(token_id)
        self._spellings = list(spellings.values())
        mark = "\x00"
        prompt, answer = render((("user", mark),), mark)
        parts = [tokenizer.encode(p) for p in (prompt + answer).split(mark)]
        self._before, self._between, self._after = parts

    def group(self, number: int) -> list[Encoded]:
        """Return the fitting answer and the other one after a question of 3 to 24 words."""
        rng = self._rng
        words = rng.sample(self._spellings, 72)
        num_asked = rng.randint(3, 24)
        asked, decoys, filler = words[:num_asked], words[24 : 24 + num_asked], words[48:]
        length, share = rng.randint(3, 24), rng.uniform(0.15, 0.6)
        # The two answers repeat their words in the same places, so that repeats give nothing away.
        places = [rng.randrange(num_asked) if rng.random() < share else -1 for _ in range(length)]
        places[rng.randrange(length)] = rng.randrange(num_asked)
        rest = [rng.choice(filler) for _ in range(length)]
        good, other = (
            [rest[i] if at < 0 else pool[at] for i, at in enumerate(places)]
            for pool in (asked, decoys)
        )
        prompt = self._before + [rng.choice(word) for word in asked] + self._between
        return [
            Encoded(
                prompt + [rng.choice(word) for word in answer] + self._after,
                len(prompt),
                0,
                kind,
                number,
            )
            for kind, answer in ((GOOD, good), (OTHER, other))
        ]
