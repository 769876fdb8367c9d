"""How good the answer of the highest reward among n is, as n grows: exact, by counting.

Pure functions of numbers; no benchmark is known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""How many answers the best is chosen of, as far as there are as many."""


class Candidates(NamedTuple):
    """Answers to one prompt, as many rewards as truths."""

    rewards: Sequence[float]
    truth: Sequence[float]


def compute_curve(prompts: Sequence[Candidates]) -> dict[str, Any]:
    """The means over prompts, of all ways to draw n of a prompt's answers.

    Args:
        prompts: at least one.

    Returns:
        `n`: of `CURVE_SIZES`, as many as the smallest group has answers; beside each n, `reward`:
        truth of the answer with the highest reward; `best` and `worst`: of the best and the worst
        answer drawn, the bounds of any choice.
    """
    smallest = min(len(prompt.rewards) for prompt in prompts)
    sizes = [n for n in CURVE_SIZES if n <= smallest]
    means: dict[str, Any] = {"n": sizes, "reward": [], "best": [], "worst": []}
    for n in sizes:
        for name, value in (("reward", _by_reward), ("best", _best), ("worst", _worst)):
            means[name].append(math.fsum(value(one, n) for one in prompts) / len(prompts))
    return means


def compute_expected_best(rewards: Sequence[float], truth: Sequence[float], n: int) -> float:
    """Expected truth of the answer with the highest reward among n drawn without replacement.

    Args:
        rewards: of K answers; of equal ones, each is as likely to be taken.
        truth: of the same answers.
        n: 1 to K.
    """
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    all_ways = math.comb(len(order), n)
    terms, start = [], 0
    while start < len(order):
        end = start
        while end < len(order) and rewards[order[end]] == rewards[order[start]]:
            end += 1
        # None of the answers before, at least one of these.
        ways = math.comb(len(order) - start, n) - math.comb(len(order) - end, n)
        group = math.fsum(truth[place] for place in order[start:end]) / (end - start)
        terms.append(ways / all_ways * group)
        start = end
    return math.fsum(terms)


def _by_reward(one: Candidates, n: int) -> float:
    return compute_expected_best(one.rewards, one.truth, n)


def _best(one: Candidates, n: int) -> float:
    return compute_expected_best(one.truth, one.truth, n)


def _worst(one: Candidates, n: int) -> float:
    return compute_expected_best([-value for value in one.truth], one.truth, n)
