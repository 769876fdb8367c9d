"""Best of n: comparison with an enumeration of all draws, and properties for any rewards."""

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


def enumerate_expected_best(rewards: Sequence[float], truth: Sequence[float], n: int) -> float:
    """Enumerate all draws; answers of a draw with equal highest rewards are equally likely."""
    values = []
    for indices in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[index] for index in indices)
        best = [truth[index] for index in indices if rewards[index] == top]
        values.append(sum(best) / len(best))
    return sum(values) / len(values)


@given(CANDIDATES, st.data())
def test_expected_best_equals_mean_over_all_draws(
    candidates: list[tuple[float, float]], data: st.DataObject
) -> None:
    rewards, truth = zip(*candidates, strict=True)
    n = data.draw(st.integers(1, len(rewards)))
    assert compute_expected_best(rewards, truth, n) == pytest.approx(
        enumerate_expected_best(rewards, truth, n), abs=1e-12
    )


@given(st.lists(CANDIDATES, min_size=1, max_size=4))
def test_curve_stays_within_bounds(prompts: list[list[tuple[float, float]]]) -> None:
    curve = compute_curve([Candidates(*zip(*prompt, strict=True)) for prompt in prompts])
    assert curve["n"][-1] <= min(map(len, prompts))
    for worst, chosen, best in zip(curve["worst"], curve["reward"], curve["best"], strict=True):
        assert worst - 1e-12 <= chosen <= best + 1e-12
    assert curve["best"] == sorted(curve["best"])
    mean = sum(sum(t for _, t in prompt) / len(prompt) for prompt in prompts) / len(prompts)
    assert curve["reward"][0] == pytest.approx(mean, abs=1e-12)


def test_large_groups_are_exact() -> None:
    truth = [float(index % 4 == 0) for index in range(128)]
    curve = compute_curve([Candidates(truth, truth)])
    assert curve["n"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert curve["reward"][1] == pytest.approx(1 - (96 * 95) / (128 * 127), abs=1e-15)
    assert curve["reward"][-1] == 1.0
    equal = compute_curve([Candidates([7.0] * 128, truth)])
    assert equal["reward"] == [0.25] * 8


def test_curve_ends_at_smallest_group() -> None:
    curve = compute_curve([Candidates([1.0] * 8, [1.0] * 8), Candidates([1.0] * 3, [0.0] * 3)])
    assert curve == {"n": [1, 2], "reward": [0.5, 0.5], "best": [0.5, 0.5], "worst": [0.5, 0.5]}
