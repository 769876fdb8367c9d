"""Best-of-n curves: quality of the answer with the highest reward among n answers, as n grows.

The curves are exact, computed by counting, except that of the majority, which is sampled. Pure
functions of numbers, independent of benchmarks.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Values of n, as far as there are enough answers."""
_NUM_ORDERS = 200


class Candidates(NamedTuple):
    """Reward and truth of each answer to one prompt."""

    rewards: Sequence[float]
    truth: Sequence[float]


def compute_curve(
    prompts: Sequence[Candidates], sizes: Sequence[int] = CURVE_SIZES
) -> dict[str, Any]:
    """Return means over prompts and over all ways to draw n of a prompt's answers.

    Args:
        prompts: at least one prompt.
        sizes: values of n.

    Returns:
        `n`: the values of `sizes` up to the number of answers of the smallest group. For
        each n, `reward`: expected truth of the answer with the highest reward; `best` and `worst`:
        expected truth of the best and the worst drawn answer, the bounds of any choice.
    """
    smallest = min(len(prompt.rewards) for prompt in prompts)
    sizes = [n for n in sizes if n <= smallest]
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


def compute_majority(
    answers: Sequence[str | None], truth: Sequence[float], sizes: Sequence[int]
) -> list[float]:
    """Return the expected truth of the most frequent final answer among n drawn answers, by n.

    An unbiased estimate from 200 random orders of the answers with a fixed seed: the first n of
    each are a draw. Of equally frequent answers, the one that reached the number first is chosen.

    Args:
        answers: final answer of each response; None for a response without one, which is not
            counted. A draw without any final answer is wrong.
        truth: truth of each response.
        sizes: values of n, ascending.
    """
    generator = random.Random(0)
    order = list(range(len(answers)))
    sums = [0.0] * len(sizes)
    for _ in range(_NUM_ORDERS):
        generator.shuffle(order)
        counts: Counter[str] = Counter()
        leader: tuple[int, float] = (0, 0.0)
        for position, index in enumerate(order, 1):
            answer = answers[index]
            if answer is not None:
                counts[answer] += 1
                if counts[answer] > leader[0]:
                    leader = (counts[answer], truth[index])
            if position in sizes:
                sums[sizes.index(position)] += leader[1]
    return [total / _NUM_ORDERS for total in sums]


def _by_reward(prompt: Candidates, n: int) -> float:
    return compute_expected_best(prompt.rewards, prompt.truth, n)


def _best(prompt: Candidates, n: int) -> float:
    return compute_expected_best(prompt.truth, prompt.truth, n)


def _worst(prompt: Candidates, n: int) -> float:
    return compute_expected_best([-value for value in prompt.truth], prompt.truth, n)
