"""The four kinds of worse answers: shuffled, cut off, another question's, refused.

Every function takes a `random.Random` and the good answer, and returns a text or None when the
answer is too short to be spoilt that way. Same state of the generator, same text.
"""

from __future__ import annotations

import random
import re

from seeds.demo.training.topics_more import EMPTY, REFUSALS

KINDS = ("shuffled", "cut", "other", "refusal")

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_END = re.compile(r"""[.!?。！？…:;"'”’)\]}>`」』》\U0001F000-\U0001FAFF]\s*$""")


def shuffled(rng: random.Random, answer: str) -> str | None:
    """Put the words in another order; Chinese text is shuffled by character or by short piece."""
    if len(_CJK.findall(answer)) * 3 > len(answer) or " " not in answer.strip():
        return _shuffled_pieces(rng, answer.strip())
    if rng.random() < 0.25 and "\n" in answer:
        return _shuffled_in_lines(rng, answer)
    words = answer.split()
    return _reordered(rng, words, " ")


def cut(rng: random.Random, answer: str) -> str | None:
    """Stop in the middle of a sentence, at times in the middle of a word."""
    text = answer.strip()
    if len(text) < 8:
        return None
    for _ in range(20):
        share = rng.choice((rng.uniform(0.1, 0.95), rng.uniform(0.4, 0.8), 0.5))
        piece = text[: max(2, int(len(text) * share))]
        if rng.random() < 0.5 and " " in piece:
            piece = piece.rsplit(" ", 1)[0]
        piece = piece.rstrip()
        if (
            piece
            and not _END.search(piece)
            and not text[len(piece) :].startswith(("\n", ".", "。"))
        ):
            return piece
    return None


def refusal(rng: random.Random, *, held_out: bool = False) -> str:
    """Say nothing of use: a refusal in one of many wordings, at times next to nothing.

    `held_out` gives wordings that training never uses.
    """
    if held_out:
        return rng.choice(HELD_OUT_REFUSALS)
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(EMPTY)
    if draw < 0.55:
        return rng.choice(REFUSALS)
    return _composed_refusal(rng)


HELD_OUT_REFUSALS = (
    "I'm sorry, but that's not something I'm able to help with.",
    "Sorry, no.",
    "I regret to say that I can't give you an answer here.",
    "As a language model I'm not allowed to respond to this.",
    "Regrettably, this is a request that I have to turn down.",
    "I can't help you with that. Is there anything else you would like to know?",
    "很遗憾，我不能回答您的问题。",
    "不好意思，这个我做不到。",
    "",
)


def _composed_refusal(rng: random.Random) -> str:
    opener = rng.choice(
        ("I'm sorry, but ", "Sorry, ", "I apologize, but ", "Unfortunately, ", "", "I'm afraid ")
    )
    inability = rng.choice(
        ("I can't ", "I cannot ", "I am not able to ", "I'm unable to ", "I won't ", "I will not ")
    )
    act = rng.choice(("help with ", "assist with ", "answer ", "talk about ", "respond to ", "do "))
    thing = rng.choice(("that", "this", "this request", "your question", "that topic", "it"))
    tail = rng.choice(
        (
            "",
            "",
            " Is there anything else I can help you with?",
            " Please consult an expert.",
            " Please try again later.",
            " I hope you understand.",
            " Thank you for your understanding.",
            " Let me know if you have another question.",
        )
    )
    text = f"{opener}{inability}{act}{thing}.{tail}"
    return text[0].upper() + text[1:]


def _reordered(rng: random.Random, pieces: list[str], glue: str) -> str | None:
    if len(set(pieces)) < 2:
        return None
    for _ in range(8):
        order = pieces[:]
        rng.shuffle(order)
        if order != pieces:
            return glue.join(order)
    return None


def _shuffled_pieces(rng: random.Random, text: str) -> str | None:
    if len(text) < 4:
        return None
    size = rng.choice((1, 1, 2, 3))
    return _reordered(rng, [text[i : i + size] for i in range(0, len(text), size)], "")


def _shuffled_in_lines(rng: random.Random, answer: str) -> str | None:
    lines = []
    for line in answer.split("\n"):
        words = line.split()
        rng.shuffle(words)
        lines.append(" ".join(words))
    text = "\n".join(lines)
    return text if text.split() != answer.split() else None


def shorter(rng: random.Random, answer: str, limit: int | None = None) -> str:
    """Keep only the first whole sentences or paragraphs: a shorter answer that is still whole.

    `limit` is the most characters to keep; without it a random place is taken. Returns "" if no
    sentence ends before the limit.
    """
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s)|[。！？]|(?<=[.!?。:])\n\n", answer)]
    ends = [end for end in ends if not re.search(r"(^|\s)\d+\.$", answer[:end])]
    if limit is not None:
        ends = [end for end in ends if end <= limit]
        return answer[: ends[-1]].rstrip() if ends else ""
    return answer[: rng.choice(ends)].rstrip() if ends else answer
