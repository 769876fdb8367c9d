"""The simulation against what queueing theory knows exactly."""

from __future__ import annotations

import math
import random

import pytest

from serve.capacity.queueing import QueueModel, SimulatedRequest, SimulationResult, simulate

POSTS = 20_000
TOKENS = 1_000


def fixed(_: random.Random) -> SimulatedRequest:
    return SimulatedRequest(0, [TOKENS])


def exponential(source: random.Random) -> SimulatedRequest:
    return SimulatedRequest(0, [max(1, round(source.expovariate(1 / TOKENS)))])


def alone(num_replicas: int) -> QueueModel:
    """A second for a conversation, one to a batch."""
    return QueueModel(num_replicas, 1, max_batch_tokens=1, token_s=1 / TOKENS)


def erlang_c(servers: int, offered: float) -> float:
    """The share that has to wait."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_one_server_with_equal_service(busy: float) -> None:
    """M/D/1: the mean wait is busy / (2 (1 - busy)) services."""
    outcome = simulate(alone(1), fixed, busy, POSTS, seed=1)
    assert outcome.mean_s == pytest.approx(1 + busy / (2 * (1 - busy)), rel=0.05)
    assert outcome.busy == pytest.approx(busy, rel=0.03)


def test_one_server_with_random_service() -> None:
    """M/M/1: latency is exponential with mean 1 / (1 - busy)."""
    outcome = simulate(alone(1), exponential, 0.6, POSTS, seed=2)
    assert outcome.mean_s == pytest.approx(2.5, rel=0.06)
    assert outcome.percentile(0.95) == pytest.approx(2.5 * math.log(20), rel=0.08)


@pytest.mark.parametrize("servers", [2, 8])
def test_several_servers(servers: int) -> None:
    """M/M/c: Erlang's C."""
    busy = 0.8
    outcome = simulate(alone(servers), exponential, busy * servers, POSTS, seed=3)
    wait = erlang_c(servers, busy * servers) / (servers * (1 - busy))
    assert outcome.mean_s == pytest.approx(1 + wait, rel=0.06)


def test_a_gateway_is_a_queue_of_its_own() -> None:
    """M/D/1 before a model that costs next to nothing."""
    station = QueueModel(1, 1, 10**9, token_s=1e-12, request_cpu_s=1.0)
    outcome = simulate(station, fixed, 0.5, POSTS, seed=4)
    assert outcome.mean_s == pytest.approx(1.5, rel=0.05)


def test_a_lone_post_takes_its_parts() -> None:
    station = QueueModel(
        2, 1, 10_000, token_s=1e-3, batch_floor_s=0.5, hop_s=0.25,
        request_cpu_s=1.0, conversation_cpu_s=0.1, token_cpu_s=1e-4,
    )  # fmt: skip
    outcome = simulate(station, lambda _: SimulatedRequest(400, [100, 300]), 1e-6, 20, seed=0)
    gateway = 1.0 + 2 * 0.1 + (2 * 400 + 400) * 1e-4
    assert outcome.mean_s == pytest.approx(gateway + 0.8 + 0.25)  # the prompt once
    assert outcome.mean_batch_tokens == 800
    short = simulate(station, lambda _: SimulatedRequest(0, [10]), 1e-6, 20, seed=0)
    assert short.mean_s == pytest.approx(1.0 + 0.1 + 1e-3 + 0.5 + 0.25)  # the floor


def test_batches_grow_with_the_load_and_carry_it() -> None:
    """Ten times what single posts could do under the floor goes through in fuller batches."""
    station = QueueModel(1, 1, 10_000, token_s=1e-6, batch_floor_s=1.0)
    lone = simulate(station, lambda _: SimulatedRequest(0, [10]), 0.01, 300, seed=0)
    busy = simulate(station, lambda _: SimulatedRequest(0, [10]), 10.0, 3_000, seed=0)
    assert lone.mean_batch_tokens < 11
    assert busy.mean_batch_tokens == pytest.approx(100, rel=0.1)
    assert busy.percentile(0.99) < 2.1


def test_a_long_post_is_cut_into_batches_and_spread() -> None:
    """Eight conversations, two to a batch with their prompt: one replica, then four."""

    def post(_: random.Random) -> SimulatedRequest:
        return SimulatedRequest(100, [450] * 8)

    def seconds(num_replicas: int) -> SimulationResult:
        station = QueueModel(num_replicas, 1, 1_000, token_s=1e-3)
        return simulate(station, post, 1e-6, 20, seed=0)

    assert seconds(1).mean_s == pytest.approx(4.0)
    assert seconds(4).mean_s == pytest.approx(1.0)
    assert seconds(4).mean_batch_tokens == 1_000


def test_what_the_cache_knows_goes_no_further_than_the_gateway() -> None:
    station = QueueModel(1, 1, 1_000, token_s=1.0, hop_s=9.0, conversation_cpu_s=0.5)
    outcome = simulate(station, lambda _: SimulatedRequest(5, [], cached=[7, 7]), 1e-6, 20, seed=0)
    assert outcome.mean_s == pytest.approx(1.0)
    assert outcome.busy == 0


def test_the_same_seed_gives_the_same() -> None:
    assert simulate(alone(2), exponential, 1.0, 500, 7) == simulate(
        alone(2), exponential, 1.0, 500, 7
    )
    assert simulate(alone(2), exponential, 1.0, 500, 7) != simulate(
        alone(2), exponential, 1.0, 500, 8
    )
