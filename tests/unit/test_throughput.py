"""When a replica may get its next batch: at once if it is free, else shortly before it is."""

from __future__ import annotations

import pytest

from serve.scheduler.dispatcher import ThroughputEstimator


def create_trained_estimator() -> ThroughputEstimator:
    estimator = ThroughputEstimator(prefetch_s=0.005)
    estimator.rate.observe(10_000, 1.0)
    return estimator


def test_without_observations_estimator_waits_for_result() -> None:
    estimator = ThroughputEstimator(prefetch_s=0.005)
    assert estimator.rate.estimate_seconds(100) is None
    assert estimator.estimate_wait(0.0, 1) == 0.0
    batch = estimator.begin(0.0, 100, 1)
    assert estimator.estimate_wait(50.0, 1) is None
    estimator.end(batch)
    assert estimator.estimate_wait(50.0, 1) == 0.0


def test_next_batch_is_due_shortly_before_expected_end() -> None:
    estimator = create_trained_estimator()
    estimator.begin(0.0, 200, 1)  # 20 ms
    assert estimator.estimate_wait(0.0, 1) == pytest.approx(0.015)
    assert estimator.estimate_wait(0.016, 1) == 0.0
    estimator.begin(0.016, 300, 1)  # one batch runs, one waits
    assert estimator.estimate_wait(0.016, 1) is None
    assert estimator.estimate_wait(10.0, 1) is None


def test_no_batch_is_prefetched_behind_long_batch() -> None:
    estimator = create_trained_estimator()
    batch = estimator.begin(0.0, 2000, 1)  # 200 ms
    assert estimator.estimate_wait(0.199, 1) is None
    assert estimator.estimate_wait(5.0, 1) is None
    estimator.end(batch)
    assert estimator.estimate_wait(5.0, 1) == 0.0


def test_waiting_batch_ends_after_running_one() -> None:
    estimator = create_trained_estimator()
    first = estimator.begin(0.0, 200, 1)
    estimator.begin(0.016, 300, 1)
    estimator.end(first)
    assert estimator.estimate_wait(0.02, 1) == pytest.approx(0.025)  # 20 + 30 ms, less the prefetch


def test_estimate_wait_accounts_for_every_replica() -> None:
    estimator = create_trained_estimator()
    for num_tokens in (200, 400):
        assert estimator.estimate_wait(0.0, 2) == 0.0
        estimator.begin(0.0, num_tokens, 2)
    assert estimator.estimate_wait(0.0, 2) == pytest.approx(0.015)
    estimator.begin(0.015, 100, 2)
    assert estimator.estimate_wait(0.015, 2) == pytest.approx(
        0.01
    )  # the replica with a waiting batch: 30 ms
    assert estimator.estimate_wait(0.015, 4) == 0.0  # two more replicas came up


def test_latest_observations_dominate_estimate() -> None:
    estimator = create_trained_estimator()
    for _ in range(30):
        estimator.rate.observe(1000, 1.0)
    assert estimator.rate.estimate_seconds(1000) == pytest.approx(1.0, rel=0.02)
