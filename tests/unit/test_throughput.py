"""When a replica may be given its next batch: at once if it is free, shortly before it will be."""

from __future__ import annotations

import pytest

from serve.scheduler.throughput import ThroughputEstimator


def learnt() -> ThroughputEstimator:
    rate = ThroughputEstimator(prefetch_s=0.005)
    rate.observe(10_000, 1.0)
    return rate


def test_without_observations_estimator_waits_for_result() -> None:
    rate = ThroughputEstimator(prefetch_s=0.005)
    assert rate.estimate_seconds(100, 1) is None
    assert rate.estimate_wait(0.0, 1) == 0.0
    ticket = rate.begin(0.0, 100, 1)
    assert rate.estimate_wait(50.0, 1) is None
    rate.end(ticket)
    assert rate.estimate_wait(50.0, 1) == 0.0


def test_next_batch_is_due_shortly_before_expected_end() -> None:
    rate = learnt()
    rate.begin(0.0, 200, 1)  # 20 ms
    assert rate.estimate_wait(0.0, 1) == pytest.approx(0.015)
    assert rate.estimate_wait(0.016, 1) == 0.0
    rate.begin(0.016, 300, 1)  # one runs, one waits
    assert rate.estimate_wait(0.016, 1) is None
    assert rate.estimate_wait(10.0, 1) is None


def test_no_batch_is_prefetched_behind_long_batch() -> None:
    rate = learnt()
    ticket = rate.begin(0.0, 2000, 1)  # 200 ms
    assert rate.estimate_wait(0.199, 1) is None
    assert rate.estimate_wait(5.0, 1) is None
    rate.end(ticket)
    assert rate.estimate_wait(5.0, 1) == 0.0


def test_waiting_batch_ends_after_running_one() -> None:
    rate = learnt()
    first = rate.begin(0.0, 200, 1)
    rate.begin(0.016, 300, 1)
    rate.end(first)
    assert rate.estimate_wait(0.02, 1) == pytest.approx(
        0.025
    )  # 20 ms, then 30 ms more, less the lead


def test_estimate_wait_accounts_for_every_replica() -> None:
    rate = learnt()
    for num_tokens in (200, 400):
        assert rate.estimate_wait(0.0, 2) == 0.0
        rate.begin(0.0, num_tokens, 2)
    assert rate.estimate_wait(0.0, 2) == pytest.approx(0.015)
    rate.begin(0.015, 100, 2)
    assert rate.estimate_wait(0.015, 2) == pytest.approx(0.01)  # where it waits: 30 ms
    assert rate.estimate_wait(0.015, 4) == 0.0  # others came up
    assert rate.estimate_seconds(400, 2) == pytest.approx(0.02)


def test_latest_observations_dominate_estimate() -> None:
    rate = learnt()
    for _ in range(30):
        rate.observe(1000, 1.0)
    assert rate.estimate_seconds(1000, 1) == pytest.approx(1.0, rel=0.02)
