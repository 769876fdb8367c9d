"""Statistics: comparison with published values and brute force, properties for any numbers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import sigmoid
from serve.evaluation.compare import McNemar, mcnemar
from serve.evaluation.statistics import (
    bin_accuracy,
    bootstrap_resamples,
    compute_calibration,
    percentile_interval,
    quantile_edges,
    wilson,
)


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    expected = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, count), (low, high) in expected.items():
        interval = wilson(right, count)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(st.integers(1, 3000), st.data())
def test_wilson_interval_contains_share(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    mirrored = wilson(count - right, count)
    assert mirrored.low == pytest.approx(1 - high, abs=1e-12)
    assert wilson(10 * right, 10 * count).low >= low - 1e-12


def test_mcnemar_against_the_binomial_and_an_example() -> None:
    # Agresti, Categorical Data Analysis: 150 and 86 differing answers.
    test = mcnemar(150, 86)
    assert test.chi_square == 63**2 / 236
    assert test.chi_square_p == pytest.approx(4.115e-5, rel=1e-3)
    for first in range(9):
        for second in range(9):
            n = first + second
            both = [math.comb(n, k) / 2**n for k in range(n + 1)]
            exact = min(1.0, 2 * sum(both[: min(first, second) + 1])) if n else 1.0
            assert mcnemar(first, second).exact_p == pytest.approx(exact, abs=1e-12)
            assert mcnemar(first, second)[2:] == mcnemar(second, first)[2:]
    assert mcnemar(0, 0) == McNemar(0, 0, 1.0, 0.0, 1.0)
    assert mcnemar(5000, 0).exact_p == 0.0
    assert 0 < mcnemar(5100, 4900).exact_p < 0.05


def test_bootstrap_is_seeded_and_close_to_wilson() -> None:
    items = [1.0] * 300 + [0.0] * 100

    def means(seed: int) -> list[float]:
        return [
            sum(resample) / len(resample)
            for resample in bootstrap_resamples([items], resamples=1000, seed=seed)
        ]

    assert means(0) == means(0)
    assert means(0) != means(1)
    interval = percentile_interval(means(0))
    assert interval is not None
    assert interval.low == pytest.approx(wilson(300, 400).low, abs=0.01)
    assert interval.high == pytest.approx(wilson(300, 400).high, abs=0.01)
    assert percentile_interval([]) is None


def test_strata_are_resampled_separately() -> None:
    resamples = list(bootstrap_resamples([[1, 2, 3], [7]], resamples=20, seed=0))
    assert len(resamples) == 20
    assert all(set(items[:3]) <= {1, 2, 3} and items[3:] == [7] for items in resamples)
    assert len({tuple(items) for items in resamples}) > 5


def test_calibration_of_margins_with_a_known_answer() -> None:
    # sigmoid(ln 3) is 3/4, and three of four pairs are right; likewise for ln 9.
    third, ninth = math.log(3), math.log(9)
    calibration = compute_calibration([third] * 3 + [-third] + [ninth] * 9 + [-ninth])
    assert calibration is not None
    assert calibration.ece == pytest.approx(0.0, abs=1e-12)
    assert [(b.num_pairs, b.accuracy) for b in calibration.bins] == [(4, 0.75), (10, 0.9)]
    assert calibration.brier == pytest.approx((4 * 3 / 16 + 10 * 0.09) / 14, abs=1e-12)
    wrong = compute_calibration([-50.0] * 4)
    assert wrong is not None
    assert (wrong.ece, wrong.brier) == (pytest.approx(1.0), pytest.approx(1.0))
    equal = compute_calibration([0.0, 0.0])
    assert equal is not None
    assert (equal.ece, equal.brier, equal.bins[0].accuracy) == (0.0, 0.25, 0.5)
    assert compute_calibration([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_calibration_is_bounded_and_independent_of_order(
    margins: list[float], rng: random.Random
) -> None:
    calibration = compute_calibration(margins)
    assert calibration is not None
    assert 0 <= calibration.ece <= 1
    assert 0 <= calibration.brier <= 1
    assert sum(group.num_pairs for group in calibration.bins) == len(margins)
    rng.shuffle(margins)
    assert compute_calibration(margins) == calibration


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(0) == 0.5
    assert sigmoid(1e300) == 1.0
    assert sigmoid(-1e300) == 0.0
    assert sigmoid(-3) == pytest.approx(1 - sigmoid(3), abs=1e-15)


def test_bins_count_each_number_once() -> None:
    pairs = [(-9.0, 1.0), (0.0, 0.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.0), (99.0, 0.0)]
    bins = bin_accuracy(pairs, [0.0, 1.0, 2.0, 2.0 + 1e-9])
    assert [group.num_pairs for group in bins] == [2, 1, 3]
    assert bins[1].accuracy == 1.0
    empty = bin_accuracy([], [0.0, 1.0])[0]
    assert (empty.num_pairs, empty.mean, empty.accuracy) == (0, 0.0, 0.0)


@given(st.lists(st.integers(-5, 5).map(float), max_size=60))
def test_quantile_edges_cover_all_numbers(numbers: list[float]) -> None:
    edges = quantile_edges(numbers, 4)
    assert len(edges) >= 2
    assert edges == sorted(set(edges))
    bins = bin_accuracy([(number, 1.0) for number in numbers], edges)
    assert sum(group.num_pairs for group in bins) == len(numbers)
    assert all(edges[0] <= number <= edges[-1] for number in numbers)


def test_quantile_edges_give_equal_bins() -> None:
    edges = quantile_edges([float(n) for n in range(100)], 4)
    bins = bin_accuracy([(float(n), 1.0) for n in range(100)], edges)
    assert [group.num_pairs for group in bins] == [25, 25, 25, 25]
