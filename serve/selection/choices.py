"""Which answers to one prompt are kept: the best one, or pairs of a better and a worse one."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

Mode: TypeAlias = Literal["best-of-n", "pairs", "top"]
Against: TypeAlias = Literal["worst", "random", "all"]
DropReason: TypeAlias = Literal["one_answer", "equal_rewards", "small_margin", "length_ratio"]
"""Why a prompt gives no row."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to choose.

    Attributes:
        mode: the best answer of each prompt, pairs, or the answers with the highest rewards of all.
        top: number of answers of mode `top`, or a fraction of all below or equal to 1.
        against: which answers are rejected in pairs: the worst, a random one, or every worse one.
        min_margin: smallest difference of the rewards of a pair; equal rewards are never a pair.
        max_length_ratio: largest quotient of the lengths of a pair, the longer by the shorter; in
            mode `best-of-n`, of an answer and the median of its prompt's answers. None: no limit.
        seed: seed of the random choice.
    """

    mode: Mode
    top: int | Fraction | None = None
    against: Against = "worst"
    min_margin: float = 0.0
    max_length_ratio: float | None = None
    seed: int = 0


class Answer(NamedTuple):
    """One answer: its number in the order of the input, its reward, its length in characters."""

    number: int
    reward: float
    length: int


def choose_best(answers: Sequence[Answer], max_length_ratio: float | None = None) -> Answer | None:
    """Return the answer with the highest reward, the first of equal ones; None if none fits."""
    if max_length_ratio is not None:
        median = statistics.median(answer.length for answer in answers)
        answers = [a for a in answers if _fits(a.length, median, max_length_ratio)]
    return max(answers, key=lambda answer: answer.reward, default=None)


def choose_pairs(answers: Sequence[Answer], choice: Choice) -> Iterator[tuple[Answer, Answer]]:
    """Yield pairs of a chosen and a rejected answer, in descending order of the chosen reward.

    Of equal rewards, the first answer counts. A random answer is drawn among those that make a pair
    with the best answer, from the seed and the number of the first answer.
    """
    ranked = sorted(answers, key=lambda answer: -answer.reward)
    if choice.against == "worst":
        if widest := _find_widest(ranked, choice):
            yield widest
        return
    for index, chosen in enumerate(ranked):
        worse = [other for other in ranked[index + 1 :] if _is_pair(chosen, other, choice)]
        if choice.against == "all":
            yield from ((chosen, other) for other in worse)
            continue
        if worse:
            yield chosen, random.Random(f"{choice.seed}/{answers[0].number}").choice(worse)
        return


def explain_drop(answers: Sequence[Answer], choice: Choice) -> DropReason:
    """Return why `choose_best` or `choose_pairs` found nothing."""
    if choice.mode == "best-of-n":
        return "length_ratio"
    rewards = [answer.reward for answer in answers]
    if len(rewards) == 1:
        return "one_answer"
    margin = max(rewards) - min(rewards)
    if margin == 0:
        return "equal_rewards"
    return "small_margin" if margin < choice.min_margin else "length_ratio"


def _find_widest(ranked: Sequence[Answer], choice: Choice) -> tuple[Answer, Answer] | None:
    """Return the pair with the largest margin among those whose lengths fit."""
    rising = sorted(ranked, key=lambda answer: answer.reward)
    widest: tuple[Answer, Answer] | None = None
    margin = 0.0
    for chosen in ranked:
        if chosen.reward - rising[0].reward <= margin:
            break
        for other in rising:
            if chosen.reward - other.reward <= margin:
                break
            if _is_pair(chosen, other, choice):
                widest, margin = (chosen, other), chosen.reward - other.reward
                break
    return widest


def _is_pair(chosen: Answer, rejected: Answer, choice: Choice) -> bool:
    margin = chosen.reward - rejected.reward
    if margin <= 0 or margin < choice.min_margin:
        return False
    ratio = choice.max_length_ratio
    return ratio is None or _fits(chosen.length, rejected.length, ratio)


def _fits(length: float, other: float, max_ratio: float) -> bool:
    return max(length, other) <= max_ratio * min(length, other)
