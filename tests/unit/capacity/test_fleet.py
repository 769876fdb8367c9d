"""How many of everything, what gives out first, and the curve of latency."""

from __future__ import annotations

import pytest
import yaml

from serve.capacity import fleet as planned
from serve.capacity.fleet import NodeSpec, compute_request_cpu_s, simulate_latency_curve, size_fleet
from serve.capacity.load import Load
from serve.capacity.plan import build_serve_config
from serve.capacity.replica import Memory, Rate
from serve.config.settings import Settings

MODEL = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
SITE = NodeSpec(8, 96, 1, 0.7, 1_024)
RATE = Rate(12_000, 12_000, 12_000, 0.02, "given", "")
MEMORY = Memory(1, 1, 1, 1, 8_192, "")
PAIRS = Load(100, 400, 400, 2)  # 20 conversations/s a replica


def test_a_post_costs_what_was_measured() -> None:
    """docs/explanation/reliability.md has 7.5 to 13.9 ms for a request of 1,230 tokens on Ray."""
    assert compute_request_cpu_s(Load(1, 0, 1_230, 1)) == pytest.approx(0.0139, rel=0.01)


def test_replicas_by_hand() -> None:
    fleet = size_fleet(PAIRS, RATE, SITE)
    assert fleet.num_replicas == 8  # 100 / (20 x 0.7) = 7.1
    assert fleet.num_nodes == 1
    assert size_fleet(Load(14, 400, 400, 2), RATE, SITE).num_replicas == 1
    assert size_fleet(Load(14, 400, 400, 2), RATE, SITE).num_gateways == 1
    assert size_fleet(Load(112, 400, 400, 2), RATE, SITE).num_replicas == 8
    assert size_fleet(Load(113, 400, 400, 2), RATE, SITE).num_nodes == 2
    assert size_fleet(Load(100, 400, 400, 2, 0.5), RATE, SITE).num_replicas == 4


def test_gateways_by_hand() -> None:
    fleet = size_fleet(PAIRS, RATE, SITE)
    assert fleet.gateway_cpu_s == pytest.approx(50 * compute_request_cpu_s(PAIRS))
    assert (fleet.num_gateways - 1) * 0.6 < fleet.gateway_cpu_s <= fleet.num_gateways * 0.6


def test_the_fleet_carries_its_load_and_limits_are_in_order() -> None:
    fleet = size_fleet(PAIRS, RATE, SITE)
    rates = [limit.conversations_per_s for limit in fleet.limits]
    assert rates == sorted(rates)
    assert rates[0] > PAIRS.conversations_per_s
    assert {limit.what for limit in fleet.limits} == {
        "replicas", "gateways", "requests in flight", "network",
    }  # fmt: skip


def test_what_gives_out_first_follows_the_load() -> None:
    """Few tokens on a fast device: gateways; long conversations: replicas."""
    fast = Rate(1e9, 1e9, 1e9, 0.0, "given", "")
    assert size_fleet(Load(10_000, 0, 10, 1), fast, SITE).limits[0].what == "gateways"
    assert size_fleet(Load(100, 4_000, 400, 2), RATE, SITE).limits[0].what == "replicas"


def test_a_million_a_minute() -> None:
    fleet = size_fleet(Load(1e6 / 60, 400, 400, 2), RATE, SITE)
    assert fleet.num_replicas == 1_191
    assert fleet.num_nodes == 149
    assert fleet.num_clusters == 5
    assert fleet.num_gateways > 200


def test_the_curve_climbs() -> None:
    fleet = size_fleet(PAIRS, RATE, SITE)
    curve = simulate_latency_curve(PAIRS, RATE, MEMORY, fleet)
    assert [point.fraction for point in curve] == sorted(point.fraction for point in curve)
    p99 = [point.p99_s for point in curve]
    assert p99 == sorted(p99)
    assert curve[-1].mean_batch_tokens > 1.5 * curve[0].mean_batch_tokens
    lone = compute_request_cpu_s(PAIRS) + 0.1 + planned.HOP_S  # 1,200 tokens at 12,000 a second
    assert curve[0].p50_s == pytest.approx(lone, rel=0.25)
    assert all(point.p50_s <= point.p95_s <= point.p99_s for point in curve)
    assert curve[0].conversations_per_s == pytest.approx(0.2 * 8 * 20)


def test_replicas_are_as_busy_as_they_were_planned_to_be() -> None:
    """At 70% of the most, what is simulated is busy for 70% of the time."""
    load = Load(1_000, 400, 400, 2)
    point = simulate_latency_curve(load, RATE, MEMORY, size_fleet(load, RATE, SITE))[3]
    assert point.fraction == 0.7
    assert point.busy == pytest.approx(0.7, abs=0.03)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # of Ray's own
@pytest.mark.parametrize(("per_s", "gpus"), [(20.0, 1), (5_000.0, 1), (50_000.0, 2)])
def test_the_config_starts_what_was_planned(per_s: float, gpus: int) -> None:
    from ray.serve.schema import ServeDeploySchema

    load = Load(per_s, 400, 400, 2)
    site = NodeSpec(8, 96, gpus, 0.7, 1_024)
    fleet = size_fleet(load, RATE, site)
    config = yaml.safe_load(yaml.safe_dump(build_serve_config(MODEL, fleet, site)))
    ServeDeploySchema.model_validate(config)
    settings = Settings.load(**config["applications"][0]["args"])
    (model,) = settings.models
    assert model.name == MODEL
    assert model.num_devices == gpus
    assert model.num_replicas * fleet.num_clusters >= fleet.num_replicas
    assert settings.num_gateways * fleet.num_clusters >= fleet.num_gateways
