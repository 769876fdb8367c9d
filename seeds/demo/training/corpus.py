"""Conversations that end in a good answer: the record, the synthetic families, the data readers.

Start at `synthetic` (text made here from the tables in `topics`) and `read_permitted` (the
permitted public data files, read where they lie and never copied). Corruption and scoring happen
elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seeds.demo.training.families import FAMILIES
from seeds.demo.training.families_documents import document_summary
from seeds.demo.training.families_held_out import HELD_OUT_FAMILIES

Turns = tuple[tuple[str, str], ...]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "You are an expert. Explain step by step.",
    "Answer the user's question as well as you can.",
    "You are an AI assistant that gives accurate, polite answers.",
    "你是一个乐于助人的助手。",
)

_REFUSING = re.compile(
    r"\b(sorry|apologi[sz]e|i (can ?no?t|can['’]t|don['’]t|do not|won['’]t|am not|['’]m not)|"
    r"unable to|as an ai|i['’]d rather not|i have no)\b|抱歉|对不起|无法",
    re.IGNORECASE,
)
_FINISHED = re.compile(r"""[.!?。！？…:;"'”’)\]}>|*`~”」』》\U0001F000-\U0001FAFF☀-➿]\s*$""")


@dataclass(frozen=True)
class Example:
    """One conversation and a good answer to it.

    `turns` are `(role, content)` and end with the user's; `source` names the file or the
    synthetic family that it comes from.
    """

    turns: Turns
    answer: str
    source: str

    @property
    def question(self) -> str:
        """The last turn's content."""
        return self.turns[-1][1]


def synthetic(seed: int, count: int, *, held_out: bool = False) -> list[Example]:
    """Make conversations from the word tables.

    `held_out` draws from the families that training never sees. Equal arguments give equal lists.
    """
    rng = random.Random(f"synthetic-{seed}-{held_out}")
    families = HELD_OUT_FAMILIES if held_out else FAMILIES
    singles = []
    for _ in range(count):
        family = rng.choice(families)
        question, answer = family(rng)
        singles.append(Example((("user", question),), answer, f"synthetic/{family.__name__}"))
    return [_with_context(rng, example, singles) for example in singles]


def documents(seed: int, count: int) -> list[Example]:
    """Make single-turn conversations about long documents, up to some 3,500 tokens each."""
    rng = random.Random(f"documents-{seed}")
    made = (document_summary(rng) for _ in range(count))
    return [Example((("user", question),), answer, "documents") for question, answer in made]


def _with_context(rng: random.Random, example: Example, others: list[Example]) -> Example:
    """Put earlier turns or a system prompt before some of the conversations."""
    turns = example.turns
    if rng.random() < 0.25:
        for other in rng.sample(others, rng.choice((1, 1, 2))):
            turns = (*other.turns, ("assistant", other.answer), *turns)
    if rng.random() < 0.25:
        turns = (("system", rng.choice(SYSTEM_PROMPTS)), *turns)
    return replace(example, turns=turns)


def read_permitted(folder: Path) -> list[Example]:
    """Read the permitted public files under `folder`; files that are missing are left out.

    Answers that are refusals, or that their own source cut off, are left out too. No other folder
    than the five named here is opened, whatever lies beside them.
    """
    rows = [
        *_dpo_demo(folder / "dpo-demo"),
        *_hh_rlhf(folder / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"),
        *_prompt_chosen(folder / "llmbar" / "rewardbench_style_llmbar.jsonl", "llmbar"),
        *_prompt_chosen(folder / "hhh" / "hhh_pairs.jsonl", "hhh"),
        *_processbench(folder / "processbench" / "gsm8k.json"),
    ]
    return list({(row.turns, row.answer): row for row in rows if _is_good(row.answer)}.values())


def split_of(example: Example, *, share: float = 0.12) -> str:
    """Return "test" for about `share` of the conversations and "train" for the others.

    Decided by the text of the first user turn, so that all turns of a conversation fall together.
    """
    first = next(content for role, content in example.turns if role == "user")
    digest = hashlib.sha256(first.strip().lower().encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") / 2**32 < share else "train"


def _is_good(answer: str) -> bool:
    """Whether an answer is whole and says something."""
    if not answer.strip() or _REFUSING.search(answer[:200]):
        return False
    last_line = answer.rstrip().rpartition("\n")[2]
    ends_like_a_list = last_line != answer.rstrip() and len(last_line) < 60
    return len(answer.split()) <= 4 or ends_like_a_list or bool(_FINISHED.search(answer))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _dpo_demo(folder: Path) -> Iterator[Example]:
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    for language in ("en", "zh"):
        for row in _read_json(folder / f"dpo_{language}_demo.json"):
            turns = [(roles[t["from"]], t["value"].strip()) for t in row["conversations"]]
            for name in ("chosen", "rejected"):
                source = f"dpo-demo-{language}"
                yield Example(tuple(turns), row[name]["value"].strip(), source)
            yield from _earlier_answers(turns, f"dpo-demo-{language}")


def _hh_rlhf(path: Path) -> Iterator[Example]:
    if not path.exists():
        return
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = []
            for part in json.loads(line)["chosen"].split("\n\nHuman: ")[1:]:
                question, _, answer = part.partition("\n\nAssistant:")
                turns += [("user", question.strip()), ("assistant", answer.strip())]
            yield from _earlier_answers(turns, "hh-rlhf")


def _earlier_answers(turns: list[tuple[str, str]], source: str) -> Iterator[Example]:
    """Make one example of each assistant turn, with at most the three turns before it."""
    for at in range(1, len(turns)):
        if turns[at][0] == "assistant" and turns[at - 1][0] == "user":
            start = max(0, at - 3) if at % 4 == 3 else at - 1
            context = turns[start:at]
            while context and context[0][0] == "assistant":
                context = context[1:]
            if all(content for _, content in context):
                yield Example(tuple(context), turns[at][1], source)


def _prompt_chosen(path: Path, source: str) -> Iterator[Example]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Example((("user", row["prompt"].strip()),), row["chosen"].strip(), source)


def _processbench(path: Path) -> Iterator[Example]:
    for row in _read_json(path):
        if row["final_answer_correct"]:
            answer = "\n\n".join(row["steps"]).strip()
            yield Example((("user", row["problem"].strip()),), answer, "processbench")
