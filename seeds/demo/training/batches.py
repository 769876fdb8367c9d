"""Groups of one good answer and its corruptions, turned into padded batches.

A group's sequences share a conversation; the loss compares them with each other. The dense labels
(which kind an answer is, whether a token already stands in the question) exist for training only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from seeds.demo.training.architecture import render
from seeds.demo.training.corpus import Example
from seeds.demo.training.corruptions import cut, refusal, shorter, shuffled

GOOD, SHUFFLED, CUT, OTHER, REFUSAL = range(5)


@dataclass(frozen=True)
class Encoded:
    """One rendered conversation.

    `ids` ends with the token that is read out; the answer begins at `answer_start`; `kind` is one
    of `GOOD`, `SHUFFLED`, `CUT`, `OTHER`, `REFUSAL`; `group` says which conversation it belongs to.
    """

    ids: list[int]
    answer_start: int
    question_start: int
    kind: int
    group: int


@dataclass(frozen=True)
class Batch:
    """A padded batch. Tensors are `[batch, seq]` but `kinds`, `groups` and `last`: `[batch]`.

    `overlap` is 1 or 0 at the answer's word tokens and -1 elsewhere; `answer` marks the answer;
    `is_text` says whether to learn to predict it, too.
    """

    ids: torch.Tensor
    answer: torch.Tensor
    overlap: torch.Tensor
    kinds: torch.Tensor
    groups: torch.Tensor
    last: torch.Tensor
    is_text: bool


class GroupMaker:
    """Makes groups of encoded sequences from examples; owns the generator that it draws from."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, examples: list[Example], seed: int):
        self._tokenizer = tokenizer
        self._rng = random.Random(f"groups-{seed}")
        self._by_source: dict[str, list[Example]] = {}
        for example in examples:
            self._by_source.setdefault(example.source, []).append(example)
        self._all = examples

    def group(self, example: Example, number: int, max_tokens: int) -> list[Encoded]:
        """Return the good answer first and its corruptions after; empty if it does not fit."""
        rng = self._rng
        answer = example.answer
        if len(answer) > 300 and rng.random() < 0.5:
            answer = shorter(rng, answer)
        prompt, _ = render(example.turns, "")
        prompt_ids = self._encode(prompt)
        room = max_tokens - len(prompt_ids)
        good = self._encode(render((), answer)[1])
        if len(good) > room:
            answer = shorter(rng, answer, int(len(answer) * 0.9 * room / len(good)))
            good = self._encode(render((), answer)[1])
        if room < 16 or len(good) > room or len(answer) < 1:
            return []
        bad = self._corruptions(example, answer)
        question = self._question_start(prompt_ids)
        texts = [(GOOD, answer), *((kind, text) for kind, text in bad if text is not None)]
        group = []
        for kind, text in texts:
            ids = self._encode(render((), text)[1])
            if len(ids) > room:
                text = shorter(rng, text, int(len(text) * 0.9 * room / len(ids)))
                ids = self._encode(render((), text)[1])
            if len(ids) <= room and (kind == GOOD or text != answer):
                group.append(Encoded(prompt_ids + ids, len(prompt_ids), question, kind, number))
        return group

    def _corruptions(self, example: Example, answer: str) -> list[tuple[int, str | None]]:
        rng = self._rng
        bad: list[tuple[int, str | None]] = [(OTHER, self._other(example)) for _ in range(2)]
        first, second = rng.random() < 0.6, rng.random() < 0.65
        if first:
            bad.append((SHUFFLED, shuffled(rng, answer)))
        if second:
            bad.append((CUT, cut(rng, answer)))
        if rng.random() < 0.45:
            bad.append((REFUSAL, refusal(rng)))
        return bad

    def _other(self, example: Example) -> str:
        """Take another conversation's answer, more often than not one from the same source."""
        rng = self._rng
        earlier = [content for role, content in example.turns if role == "assistant"]
        if earlier and rng.random() < 0.25:
            return rng.choice(earlier)
        pool = self._by_source[example.source] if rng.random() < 0.6 else self._all
        for _ in range(8):
            other = rng.choice(pool)
            if other.question != example.question and other.answer != example.answer:
                break
        if len(other.answer) > 200 and rng.random() < 0.6:
            return shorter(rng, other.answer)
        return other.answer

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _question_start(self, prompt_ids: list[int]) -> int:
        start = self._tokenizer.convert_tokens_to_ids("<|im_start|>")
        marks = [i for i, token in enumerate(prompt_ids) if token == start]
        return marks[-2] if len(marks) > 1 else 0


def collate(group: list[Encoded], classes: list[int], pad: int, is_text: bool = True) -> Batch:
    """Pad to the right and work out the dense labels."""
    width = max(len(item.ids) for item in group)
    ids = torch.full((len(group), width), pad)
    answer = torch.zeros(len(group), width, dtype=torch.bool)
    overlap = torch.full((len(group), width), -1)
    for row, item in enumerate(group):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        answer[row, item.answer_start : len(item.ids)] = True
        asked = {classes[i] for i in item.ids[item.question_start : item.answer_start]}
        for at in range(item.answer_start, len(item.ids)):
            if (word := classes[item.ids[at]]) >= 0:
                overlap[row, at] = int(word in asked)
    return Batch(
        ids=ids,
        answer=answer,
        overlap=overlap,
        kinds=torch.tensor([item.kind for item in group]),
        groups=torch.tensor([item.group for item in group]),
        last=torch.tensor([len(item.ids) - 1 for item in group]),
        is_text=is_text,
    )


def batches_of(
    groups: list[list[Encoded]], budget: int, rng: random.Random
) -> Iterator[list[Encoded]]:
    """Join groups of like length into batches of at most `budget` padded tokens; random order."""
    ordered = sorted((g for g in groups if len(g) > 1), key=lambda g: max(len(e.ids) for e in g))
    batches: list[list[Encoded]] = []
    current: list[Encoded] = []
    for group in ordered:
        width = max(len(e.ids) for e in group)
        if current and width * (len(current) + len(group)) > budget:
            batches.append(current)
            current = []
        current = current + group
    if current:
        batches.append(current)
    rng.shuffle(batches)
    yield from batches
