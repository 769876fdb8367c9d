"""The simulation compared with exact results of queueing theory."""

from __future__ import annotations

import math
import random

import pytest

from serve.capacity.queueing import QueueModel, SimulatedRequest, SimulationResult, simulate

NUM_REQUESTS = 20_000
TOKENS = 1_000


def sample_fixed(_: random.Random) -> SimulatedRequest:
    return SimulatedRequest(0, [TOKENS])


def sample_exponential(source: random.Random) -> SimulatedRequest:
    return SimulatedRequest(0, [max(1, round(source.expovariate(1 / TOKENS)))])


def build_unbatched_model(num_replicas: int) -> QueueModel:
    """A model with one conversation per batch and one second per conversation on average."""
    return QueueModel(num_replicas, 1, max_batch_tokens=1, token_s=1 / TOKENS)


def compute_erlang_c(servers: int, offered: float) -> float:
    """Return the probability that a request has to wait."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_one_replica_with_constant_service_time(busy: float) -> None:
    """M/D/1: the mean wait is busy / (2 (1 - busy)) service times."""
    result = simulate(build_unbatched_model(1), sample_fixed, busy, NUM_REQUESTS, seed=1)
    assert result.mean_s == pytest.approx(1 + busy / (2 * (1 - busy)), rel=0.05)
    assert result.busy == pytest.approx(busy, rel=0.03)


def test_one_replica_with_exponential_service_time() -> None:
    """M/M/1: latency is exponential with mean 1 / (1 - busy)."""
    result = simulate(build_unbatched_model(1), sample_exponential, 0.6, NUM_REQUESTS, seed=2)
    assert result.mean_s == pytest.approx(2.5, rel=0.06)
    assert result.percentile(0.95) == pytest.approx(2.5 * math.log(20), rel=0.08)


@pytest.mark.parametrize("servers", [2, 8])
def test_several_replicas_match_erlang_c(servers: int) -> None:
    """M/M/c: Erlang's C."""
    busy = 0.8
    result = simulate(
        build_unbatched_model(servers), sample_exponential, busy * servers, NUM_REQUESTS, seed=3
    )
    wait = compute_erlang_c(servers, busy * servers) / (servers * (1 - busy))
    assert result.mean_s == pytest.approx(1 + wait, rel=0.06)


def test_gateway_is_a_separate_queue() -> None:
    """M/D/1 in front of a model of negligible cost."""
    model = QueueModel(1, 1, 10**9, token_s=1e-12, request_cpu_s=1.0)
    result = simulate(model, sample_fixed, 0.5, NUM_REQUESTS, seed=4)
    assert result.mean_s == pytest.approx(1.5, rel=0.05)


def test_latency_of_a_single_request_adds_up() -> None:
    model = QueueModel(
        2, 1, 10_000, token_s=1e-3, batch_floor_s=0.5, hop_s=0.25,
        request_cpu_s=1.0, conversation_cpu_s=0.1, token_cpu_s=1e-4,
    )  # fmt: skip
    result = simulate(model, lambda _: SimulatedRequest(400, [100, 300]), 1e-6, 20, seed=0)
    gateway = 1.0 + 2 * 0.1 + (2 * 400 + 400) * 1e-4
    assert result.mean_s == pytest.approx(gateway + 0.8 + 0.25)  # the prompt is computed once
    assert result.mean_batch_tokens == 800
    short = simulate(model, lambda _: SimulatedRequest(0, [10]), 1e-6, 20, seed=0)
    assert short.mean_s == pytest.approx(1.0 + 0.1 + 1e-3 + 0.5 + 0.25)  # the floor


def test_batches_grow_with_load() -> None:
    """Fuller batches carry ten times the rate of unbatched requests under the floor."""
    model = QueueModel(1, 1, 10_000, token_s=1e-6, batch_floor_s=1.0)
    low_load = simulate(model, lambda _: SimulatedRequest(0, [10]), 0.01, 300, seed=0)
    high_load = simulate(model, lambda _: SimulatedRequest(0, [10]), 10.0, 3_000, seed=0)
    assert low_load.mean_batch_tokens < 11
    assert high_load.mean_batch_tokens == pytest.approx(100, rel=0.1)
    assert high_load.percentile(0.99) < 2.1


def test_long_request_is_split_over_replicas() -> None:
    """Eight conversations in batches of two with their prompt: on one replica, then on four."""

    def sample(_: random.Random) -> SimulatedRequest:
        return SimulatedRequest(100, [450] * 8)

    def run(num_replicas: int) -> SimulationResult:
        model = QueueModel(num_replicas, 1, 1_000, token_s=1e-3)
        return simulate(model, sample, 1e-6, 20, seed=0)

    assert run(1).mean_s == pytest.approx(4.0)
    assert run(4).mean_s == pytest.approx(1.0)
    assert run(4).mean_batch_tokens == 1_000


def test_cached_responses_cost_only_the_gateway() -> None:
    model = QueueModel(1, 1, 1_000, token_s=1.0, hop_s=9.0, conversation_cpu_s=0.5)
    result = simulate(model, lambda _: SimulatedRequest(5, [], cached=[7, 7]), 1e-6, 20, seed=0)
    assert result.mean_s == pytest.approx(1.0)
    assert result.busy == 0


def test_simulation_is_deterministic_for_a_seed() -> None:
    assert simulate(build_unbatched_model(2), sample_exponential, 1.0, 500, 7) == simulate(
        build_unbatched_model(2), sample_exponential, 1.0, 500, 7
    )
    assert simulate(build_unbatched_model(2), sample_exponential, 1.0, 500, 7) != simulate(
        build_unbatched_model(2), sample_exponential, 1.0, 500, 8
    )
