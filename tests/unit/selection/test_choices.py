"""Choices among the answers to one prompt, against a search over all answers and pairs."""

from __future__ import annotations

import itertools
import random

import pytest

from serve.selection.choices import Answer, Choice, choose_best, choose_pairs, explain_drop


def draw(seed: int) -> list[Answer]:
    """Answers with many equal rewards and lengths."""
    chance = random.Random(seed)
    return [
        Answer(number, chance.randint(0, 4) / 2, chance.choice((0, 10, 15, 40)))
        for number in range(chance.randint(1, 8))
    ]


def list_pairs(answers: list[Answer], choice: Choice) -> set[tuple[Answer, Answer]]:
    ratio = choice.max_length_ratio
    return {
        (better, worse)
        for better, worse in itertools.permutations(answers, 2)
        if better.reward > worse.reward
        and better.reward - worse.reward >= choice.min_margin
        and (
            ratio is None
            or max(better.length, worse.length) <= ratio * min(better.length, worse.length)
        )
    }


CHOICES = [(m, r) for m in (0.0, 0.5, 1.0, 5.0) for r in (None, 1.0, 1.5, 3.0)]


@pytest.mark.parametrize(("margin", "ratio"), CHOICES)
def test_pairs_are_those_of_a_search_over_all(margin: float, ratio: float | None) -> None:
    num_found = 0
    for seed in range(60):
        answers = draw(seed)
        choice = Choice("pairs", against="all", min_margin=margin, max_length_ratio=ratio)
        expected = list_pairs(answers, choice)
        found = list(choose_pairs(answers, choice))
        assert len(found) == len(expected)
        assert set(found) == expected
        num_found += len(found)
        worst = Choice("pairs", min_margin=margin, max_length_ratio=ratio)
        widest = list(choose_pairs(answers, worst))
        assert len(widest) == bool(expected)
        if expected:
            ((better, worse),) = widest
            assert (better, worse) in expected
            assert better.reward - worse.reward == max(b.reward - w.reward for b, w in expected)
        drawn = Choice("pairs", None, "random", margin, ratio)
        best = max(answers, key=lambda answer: answer.reward)
        pair = next(choose_pairs(answers, drawn), None)
        fitting = {pair for pair in expected if pair[0] == best}
        assert pair in fitting if fitting else pair is None
    assert num_found or margin == 5


def test_random_depends_on_the_seed_alone() -> None:
    answers = [Answer(number, float(number), 10) for number in range(20)]

    def draw_all(seed: int) -> list[Answer]:
        choice = Choice("pairs", against="random", seed=seed)
        return [next(choose_pairs(answers[n:], choice))[1] for n in range(10)]

    assert draw_all(1) == draw_all(1)
    assert len({tuple(draw_all(seed)) for seed in range(10)}) == 10
    assert len(set(draw_all(1))) > 3


def test_first_of_equal_rewards_is_best() -> None:
    answers = [Answer(0, 1.0, 5), Answer(1, 2.0, 9), Answer(2, 2.0, 5)]
    assert choose_best(answers) == answers[1]
    assert choose_best(answers, max_length_ratio=1.5) == answers[2]
    far = [Answer(0, 1.0, 1), Answer(1, 2.0, 100)]
    assert choose_best(far, max_length_ratio=1.5) is None


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([Answer(0, 1.0, 5)], "one_answer"),
        ([Answer(0, 1.0, 5), Answer(1, 1.0, 5)], "equal_rewards"),
        ([Answer(0, 1.0, 5), Answer(1, 1.4, 5)], "small_margin"),
        ([Answer(0, 1.0, 5), Answer(1, 3.0, 50)], "length_ratio"),
    ],
)
def test_reason_without_a_pair(answers: list[Answer], reason: str) -> None:
    choice = Choice("pairs", min_margin=0.5, max_length_ratio=2.0)
    assert not [*choose_pairs(answers, choice)]
    assert explain_drop(answers, choice) == reason
