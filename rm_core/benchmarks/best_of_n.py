"""Best-of-n curves: quality of the answer with the highest reward among n answers, as n grows.

The curves are exact, computed by counting. Pure functions of numbers, independent of benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Values of n, as far as there are enough answers."""


class Candidates(NamedTuple):
    """Reward and truth of each answer to one prompt."""

    rewards: Sequence[float]
    truth: Sequence[float]


def compute_curve(prompts: Sequence[Candidates]) -> dict[str, Any]:
    """Return means over prompts and over all ways to draw n of a prompt's answers.

    Args:
        prompts: at least one prompt.

    Returns:
        `n`: the values of `CURVE_SIZES` up to the number of answers of the smallest group. For
        each n, `reward`: expected truth of the answer with the highest reward; `best` and `worst`:
        expected truth of the best and the worst drawn answer, the bounds of any choice.
    """
    smallest = min(len(prompt.rewards) for prompt in prompts)
    sizes = [n for n in CURVE_SIZES if n <= smallest]
    means: dict[str, Any] = {"n": sizes, "reward": [], "best": [], "worst": []}
    for n in sizes:
        for name, value in (("reward", _by_reward), ("best", _best), ("worst", _worst)):
            means[name].append(math.fsum(value(prompt, n) for prompt in prompts) / len(prompts))
    return means


def compute_expected_best(rewards: Sequence[float], truth: Sequence[float], n: int) -> float:
    """Return the expected truth of the answer with the highest reward among n drawn answers.

    Answers are drawn without replacement.

    Args:
        rewards: rewards of K answers; answers with equal rewards are equally likely to be chosen.
        truth: truth of each of these answers.
        n: number of drawn answers, 1 to K.
    """
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    num_draws = math.comb(len(order), n)
    terms, start = [], 0
    while start < len(order):
        end = start
        while end < len(order) and rewards[order[end]] == rewards[order[start]]:
            end += 1
        # Draws without any earlier answer and with at least one answer of this group.
        num_group_draws = math.comb(len(order) - start, n) - math.comb(len(order) - end, n)
        group_truth = math.fsum(truth[index] for index in order[start:end]) / (end - start)
        terms.append(num_group_draws / num_draws * group_truth)
        start = end
    return math.fsum(terms)


def _by_reward(prompt: Candidates, n: int) -> float:
    return compute_expected_best(prompt.rewards, prompt.truth, n)


def _best(prompt: Candidates, n: int) -> float:
    return compute_expected_best(prompt.truth, prompt.truth, n)


def _worst(prompt: Candidates, n: int) -> float:
    return compute_expected_best([-value for value in prompt.truth], prompt.truth, n)
