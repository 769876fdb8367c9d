"""Best of n: against all ways to draw, and what must hold for any rewards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.benchmarks.best_of_n import Candidates, compute_curve, compute_expected_best

CANDIDATES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.25, 1.0])),
    min_size=1,
    max_size=7,
)


def drawn(rewards: Sequence[float], truth: Sequence[float], n: int) -> float:
    """The plain way: each draw, each of its best answers equally likely."""
    values = []
    for places in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[place] for place in places)
        best = [truth[place] for place in places if rewards[place] == top]
        values.append(sum(best) / len(best))
    return sum(values) / len(values)


@given(CANDIDATES, st.data())
def test_equals_the_mean_over_all_draws(
    candidates: list[tuple[float, float]], data: st.DataObject
) -> None:
    rewards, truth = zip(*candidates, strict=True)
    n = data.draw(st.integers(1, len(rewards)))
    assert compute_expected_best(rewards, truth, n) == pytest.approx(
        drawn(rewards, truth, n), abs=1e-12
    )


@given(st.lists(CANDIDATES, min_size=1, max_size=4))
def test_no_choice_is_beyond_its_bounds(prompts: list[list[tuple[float, float]]]) -> None:
    found = compute_curve([Candidates(*zip(*one, strict=True)) for one in prompts])
    assert found["n"][-1] <= min(map(len, prompts))
    for worst, chosen, best in zip(found["worst"], found["reward"], found["best"], strict=True):
        assert worst - 1e-12 <= chosen <= best + 1e-12
    assert found["best"] == sorted(found["best"])
    mean = sum(sum(t for _, t in one) / len(one) for one in prompts) / len(prompts)
    assert found["reward"][0] == pytest.approx(mean, abs=1e-12)


def test_large_groups_are_exact() -> None:
    truth = [float(place % 4 == 0) for place in range(128)]
    found = compute_curve([Candidates(truth, truth)])
    assert found["n"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert found["reward"][1] == pytest.approx(1 - (96 * 95) / (128 * 127), abs=1e-15)
    assert found["reward"][-1] == 1.0
    equal = compute_curve([Candidates([7.0] * 128, truth)])
    assert equal["reward"] == [0.25] * 8


def test_the_smallest_group_ends_the_curve() -> None:
    found = compute_curve([Candidates([1.0] * 8, [1.0] * 8), Candidates([1.0] * 3, [0.0] * 3)])
    assert found == {"n": [1, 2], "reward": [0.5, 0.5], "best": [0.5, 0.5], "worst": [0.5, 0.5]}
