"""Sizes of a fleet."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from serve.capacity.plan import NodeSpec, build_serve_config, compute_request_cpu_s, size_fleet
from serve.capacity.replica import Load, Rate
from serve.config.settings import Settings

MODEL = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
NODE_SPEC = NodeSpec(8, 96, 1, 0.7)
RATE = Rate(12_000, 12_000, 12_000, "given", "")
PAIRS = Load(100, 400, 400, 2)  # 20 conversations/s per replica
CPU_MS = (1.03, 0.14, 0.4e-3, 6.4)  # of a request, a conversation, a token; Ray's of a request


def test_request_cpu_matches_measurements() -> None:
    """docs/operations/sizing.md has the parts; docs/explanation/reliability.md the sum on Ray."""
    for load in (PAIRS, Load(1, 0, 1_230, 1), Load(1, 400, 400, 16)):
        num_tokens = load.group_size * load.conversation_tokens
        counts = (1, load.group_size, num_tokens, 1)
        expected_ms = sum(ms * count for ms, count in zip(CPU_MS, counts, strict=True))
        assert compute_request_cpu_s(load) == pytest.approx(expected_ms / 1_000)
    assert 0.0075 <= compute_request_cpu_s(Load(1, 0, 1_230, 1)) <= 0.0139


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
    load = dataclasses.replace(PAIRS, conversations_per_s=400)
    fleet = size_fleet(load, RATE, NODE_SPEC)
    assert fleet.gateway_cpu_s == pytest.approx(200 * compute_request_cpu_s(PAIRS))
    assert fleet.num_gateways > 2
    assert (fleet.num_gateways - 1) * 0.6 < fleet.gateway_cpu_s <= fleet.num_gateways * 0.6


def test_fleet_for_a_million_conversations_per_minute() -> None:
    fleet = size_fleet(Load(1e6 / 60, 400, 400, 2), RATE, NODE_SPEC)
    assert fleet.num_replicas == 1_191
    assert fleet.num_nodes == 149
    assert fleet.num_gateways == 116  # 8,333 requests of 8.35 ms, at 0.6 of a core


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
