"""Measure the demo model: `python -m seeds.demo.training.evaluate --model DIR [--data DIR]`.

Corrupts conversations that training never saw and prints, kind by kind and source by source, how
often the good answer gets the higher reward. Equal rewards count as wrong.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from seeds.demo.training.corpus import Example, Turns, read_permitted, split_of, synthetic
from seeds.demo.training.corruptions import KINDS, cut, refusal, shuffled

UNSEEN_SOURCES = ("hhh",)
MAX_TOKENS = 2048


@dataclass(frozen=True)
class Case:
    """One comparison: `good` should get more reward than `bad` after `turns`."""

    turns: Turns
    good: str
    bad: str
    kind: str
    source: str


def make_cases(examples: list[Example], seed: int) -> list[Case]:
    """Corrupt every example in each of the four ways that its answer allows.

    The other question's answer is that of the next example of the same source, then language by
    language as they come; refusals use wordings that training never used.
    """
    rng = random.Random(f"cases-{seed}")
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source.split("/")[0]].append(example)
    cases = []
    for rows in by_source.values():
        rng.shuffle(rows)
        for at, row in enumerate(rows):
            follow = (rows[(at + k) % len(rows)] for k in range(1, len(rows)))
            other = next((o.answer for o in follow if _differs(o, row)), None)
            bad = {
                "shuffled": shuffled(rng, row.answer),
                "cut": cut(rng, row.answer),
                "other": other,
                "refusal": refusal(rng, held_out=True),
            }
            for kind in KINDS:
                text = bad[kind]
                if text is not None:
                    cases.append(Case(row.turns, row.answer, text, kind, row.source))
    return cases


def _differs(one: Example, two: Example) -> bool:
    return one.turns[0][1] != two.turns[0][1] and one.answer != two.answer


class PlainScorer:
    """Scores conversations with transformers alone, as a user without the service would."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def encode(self, turns: Turns, answer: str) -> list[int]:
        """Return the token ids of a conversation that ends in `answer`."""
        messages = [{"role": role, "content": content} for role, content in turns]
        messages.append({"role": "assistant", "content": answer})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @torch.no_grad()
    def rewards(self, conversations: list[list[int]]) -> list[float]:
        """Return one reward per conversation, in the order given."""
        result = [0.0] * len(conversations)
        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i]))
        start = 0
        while start < len(order):
            size = max(1, min(64, 8192 // max(1, len(conversations[order[start]]))))
            rows = order[start : start + size]
            padded = self.tokenizer.pad(
                {"input_ids": [conversations[i] for i in rows]}, return_tensors="pt"
            )
            logits = self.model(**padded).logits.float().squeeze(-1)
            for i, value in zip(rows, logits.tolist(), strict=True):
                result[i] = value
            start += size
        return result


def right(scorer: PlainScorer, cases: list[Case]) -> list[bool]:
    """Say of each case, in order, whether the good answer got the higher reward."""
    wanted = {(c.turns, answer) for c in cases for answer in (c.good, c.bad)}
    ordered = sorted(wanted)
    rewards = scorer.rewards([scorer.encode(turns, answer) for turns, answer in ordered])
    reward_of = dict(zip(ordered, rewards, strict=True))
    return [reward_of[c.turns, c.good] > reward_of[c.turns, c.bad] for c in cases]


def table(cases: list[Case], correct: list[bool], name: Callable[[Case], str]) -> str:
    """Lay the accuracies out as a Markdown table, one line per `name`."""
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for case, ok in zip(cases, correct, strict=True):
        for line in (name(case), "all"):
            for column in (case.kind, "all"):
                counts[line, column].append(ok)
    lines = [f"| source | {' | '.join(KINDS)} | all four |", "|---" * 6 + "|"]
    for line in [*sorted({n for n, _ in counts} - {"all"}), "all"]:
        cells = [
            f"{sum(c) / len(c):.1%} ({len(c)})" if (c := counts[line, k]) else "-"
            for k in (*KINDS, "all")
        ]
        lines.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(lines)


def held_out_examples(data: Path | None, seed: int, per_source: int) -> list[Example]:
    """Return conversations that training never saw, at most `per_source` of each source."""
    examples = synthetic(seed, per_source, held_out=True)
    if data is None:
        return examples
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in read_permitted(data):
        if example.source in UNSEEN_SOURCES or split_of(example) == "test":
            by_source[example.source].append(example)
    rng = random.Random(seed)
    for rows in by_source.values():
        examples += rng.sample(rows, min(per_source, len(rows)))
    return examples


def main() -> None:
    """Parse the command line, score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--per-source", type=int, default=100)
    args = parser.parse_args()
    scorer = PlainScorer(args.model)
    examples = held_out_examples(args.data, args.seed, args.per_source)
    cases = make_cases(examples, args.seed)
    cases = [c for c in cases if len(scorer.encode(c.turns, c.good)) <= MAX_TOKENS]
    print(table(cases, right(scorer, cases), lambda case: case.source))


if __name__ == "__main__":
    main()
