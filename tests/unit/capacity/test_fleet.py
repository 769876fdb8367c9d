"""Sizes of a fleet, its bottlenecks and its latency curve."""

from __future__ import annotations

import pytest
import yaml

from serve.capacity.fleet import (
    HOP_S,
    NodeSpec,
    compute_request_cpu_s,
    simulate_latency_curve,
    size_fleet,
)
from serve.capacity.load import Load
from serve.capacity.plan import build_serve_config
from serve.capacity.replica import Memory, Rate
from serve.config.settings import Settings

MODEL = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
NODE_SPEC = NodeSpec(8, 96, 1, 0.7, 1_024)
RATE = Rate(12_000, 12_000, 12_000, 0.02, "given", "")
MEMORY = Memory(1, 1, 1, 1, 8_192, "")
PAIRS = Load(100, 400, 400, 2)  # 20 conversations/s per replica


def test_request_cpu_matches_measurement() -> None:
    """docs/explanation/reliability.md has 7.5 to 13.9 ms for a request of 1,230 tokens on Ray."""
    assert compute_request_cpu_s(Load(1, 0, 1_230, 1)) == pytest.approx(0.0139, rel=0.01)


def test_number_of_replicas_and_nodes() -> None:
    fleet = size_fleet(PAIRS, RATE, NODE_SPEC)
    assert fleet.num_replicas == 8  # 100 / (20 x 0.7) = 7.1
    assert fleet.num_nodes == 1
    assert size_fleet(Load(14, 400, 400, 2), RATE, NODE_SPEC).num_replicas == 1
    assert size_fleet(Load(14, 400, 400, 2), RATE, NODE_SPEC).num_gateways == 1
    assert size_fleet(Load(112, 400, 400, 2), RATE, NODE_SPEC).num_replicas == 8
    assert size_fleet(Load(113, 400, 400, 2), RATE, NODE_SPEC).num_nodes == 2
    assert size_fleet(Load(100, 400, 400, 2, 0.5), RATE, NODE_SPEC).num_replicas == 4


def test_number_of_gateways() -> None:
    fleet = size_fleet(PAIRS, RATE, NODE_SPEC)
    assert fleet.gateway_cpu_s == pytest.approx(50 * compute_request_cpu_s(PAIRS))
    assert (fleet.num_gateways - 1) * 0.6 < fleet.gateway_cpu_s <= fleet.num_gateways * 0.6


def test_limits_are_sorted_and_above_load() -> None:
    fleet = size_fleet(PAIRS, RATE, NODE_SPEC)
    rates = [limit.conversations_per_s for limit in fleet.limits]
    assert rates == sorted(rates)
    assert rates[0] > PAIRS.conversations_per_s
    assert {limit.what for limit in fleet.limits} == {
        "replicas", "gateways", "requests in flight", "network",
    }  # fmt: skip


def test_bottleneck_depends_on_load() -> None:
    """Few tokens on a fast device: gateways; long conversations: replicas."""
    fast = Rate(1e9, 1e9, 1e9, 0.0, "given", "")
    assert size_fleet(Load(10_000, 0, 10, 1), fast, NODE_SPEC).limits[0].what == "gateways"
    assert size_fleet(Load(100, 4_000, 400, 2), RATE, NODE_SPEC).limits[0].what == "replicas"


def test_fleet_for_a_million_conversations_per_minute() -> None:
    fleet = size_fleet(Load(1e6 / 60, 400, 400, 2), RATE, NODE_SPEC)
    assert fleet.num_replicas == 1_191
    assert fleet.num_nodes == 149
    assert fleet.num_clusters == 5
    assert fleet.num_gateways > 200


def test_latency_grows_with_load() -> None:
    fleet = size_fleet(PAIRS, RATE, NODE_SPEC)
    curve = simulate_latency_curve(PAIRS, RATE, MEMORY, fleet)
    assert [point.fraction for point in curve] == sorted(point.fraction for point in curve)
    p99 = [point.p99_s for point in curve]
    assert p99 == sorted(p99)
    assert curve[-1].mean_batch_tokens > 1.5 * curve[0].mean_batch_tokens
    # A single request: 1,200 tokens at 12,000 tokens/s.
    single_request_s = compute_request_cpu_s(PAIRS) + 0.1 + HOP_S
    assert curve[0].p50_s == pytest.approx(single_request_s, rel=0.25)
    assert all(point.p50_s <= point.p95_s <= point.p99_s for point in curve)
    assert curve[0].conversations_per_s == pytest.approx(0.2 * 8 * 20)


def test_simulated_utilization_equals_load_fraction() -> None:
    """At 70% of the maximum rate, the simulated replicas are busy for 70% of the time."""
    load = Load(1_000, 400, 400, 2)
    point = simulate_latency_curve(load, RATE, MEMORY, size_fleet(load, RATE, NODE_SPEC))[3]
    assert point.fraction == 0.7
    assert point.busy == pytest.approx(0.7, abs=0.03)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # raised by Ray
@pytest.mark.parametrize(("per_s", "gpus"), [(20.0, 1), (5_000.0, 1), (50_000.0, 2)])
def test_serve_config_matches_plan(per_s: float, gpus: int) -> None:
    from ray.serve.schema import ServeDeploySchema

    load = Load(per_s, 400, 400, 2)
    node_spec = NodeSpec(8, 96, gpus, 0.7, 1_024)
    fleet = size_fleet(load, RATE, node_spec)
    config = yaml.safe_load(yaml.safe_dump(build_serve_config(MODEL, fleet, node_spec)))
    ServeDeploySchema.model_validate(config)
    settings = Settings.load(**config["applications"][0]["args"])
    (model,) = settings.models
    assert model.name == MODEL
    assert model.num_devices == gpus
    assert model.num_replicas * fleet.num_clusters >= fleet.num_replicas
    assert settings.num_gateways * fleet.num_clusters >= fleet.num_gateways
