"""Sizes of a fleet."""

from __future__ import annotations

import pytest
import yaml

from serve.capacity.plan import NodeSpec, build_serve_config, compute_request_cpu_s, size_fleet
from serve.capacity.replica import Load, Rate
from serve.config.settings import Settings

MODEL = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
NODE_SPEC = NodeSpec(8, 96, 1, 0.7)
RATE = Rate(12_000, 12_000, 12_000, "given", "")
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


def test_fleet_for_a_million_conversations_per_minute() -> None:
    fleet = size_fleet(Load(1e6 / 60, 400, 400, 2), RATE, NODE_SPEC)
    assert fleet.num_replicas == 1_191
    assert fleet.num_nodes == 149
    assert fleet.num_gateways > 200


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # raised by Ray
@pytest.mark.parametrize(("per_s", "gpus"), [(20.0, 1), (5_000.0, 1), (50_000.0, 2)])
def test_serve_config_matches_plan(per_s: float, gpus: int) -> None:
    from ray.serve.schema import ServeDeploySchema

    load = Load(per_s, 400, 400, 2)
    node_spec = NodeSpec(8, 96, gpus, 0.7)
    fleet = size_fleet(load, RATE, node_spec)
    config = yaml.safe_load(yaml.safe_dump(build_serve_config(MODEL, fleet, node_spec)))
    ServeDeploySchema.model_validate(config)
    settings = Settings.load(**config["applications"][0]["args"])
    (model,) = settings.models
    assert model.name == MODEL
    assert model.num_devices == gpus
    assert model.num_replicas == fleet.num_replicas
    assert settings.num_gateways == fleet.num_gateways
