"""From what is asked to a plan: one replica, the fleet, its latency, and how to start it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rm_core import ModelConfig, find_entry
from serve.capacity.devices import DEVICES
from serve.capacity.fleet import Fleet, LatencyPoint, NodeSpec, simulate_latency_curve, size_fleet
from serve.capacity.load import Load
from serve.capacity.measure import measure
from serve.capacity.replica import Memory, Rate, estimate_memory, estimate_rate
from serve.capacity.shape import ModelShape, find_model_shape
from serve.errors import PlanError

_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is made for.

    Attributes:
        model: in the catalogue, or at hand.
        gpu: key of `DEVICES`; None to measure the device at hand.
        load: None for what one replica carries.
        lengths: a load whose rate does not count; used where there is none.
        site: nodes and what they may be used for.
        matrix_flops: measured, if known.
        share: measured, if known.
    """

    model: str
    gpu: str | None
    load: Load | None
    lengths: Load
    node_spec: NodeSpec
    matrix_flops: float | None = None
    efficiency: float | None = None


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What came out; `command` starts it, `config` is a Serve config of one cluster."""

    model: str
    num_parameters: int
    sizes_from: str
    device: str
    gpus_per_replica: int
    load: Load
    memory: Memory
    rate: Rate
    conversations_per_s_per_replica: float
    fleet: Fleet
    curve: tuple[LatencyPoint, ...]
    command: str
    config: Mapping[str, Any]


def make_plan(request: PlanRequest) -> CapacityPlan:
    """Reckon it all.

    Raises:
        PlanError: it cannot be done with these devices or lengths.
        ModelLoadError: no such model, or it cannot be loaded to be measured.
    """
    shape = find_model_shape(request.model)
    lengths = request.load or request.lengths
    if lengths.conversation_tokens > shape.max_length:
        raise PlanError(
            f"a conversation has {lengths.conversation_tokens} tokens, and {shape.name} takes "
            f"{shape.max_length}; lower --prompt-tokens or --response-tokens"
        )
    device, memory, rate = _plan_replica(request, shape, lengths)
    one = rate.conversations_per_s(lengths)
    carried = one * request.node_spec.utilization / (1 - lengths.cached_share)
    load = request.load or dataclasses.replace(lengths, conversations_per_s=carried)
    fleet = size_fleet(load, rate, request.node_spec)
    return CapacityPlan(
        model=shape.name,
        num_parameters=shape.num_parameters,
        sizes_from=shape.source,
        device=device,
        gpus_per_replica=request.node_spec.gpus_per_replica,
        load=load,
        memory=memory,
        rate=rate,
        conversations_per_s_per_replica=one,
        fleet=fleet,
        curve=simulate_latency_curve(load, rate, memory, fleet),
        command=build_start_command(_get_loadable_name(request.model), fleet, request.node_spec),
        config=build_serve_config(_get_loadable_name(request.model), fleet, request.node_spec),
    )


def _get_loadable_name(model: str) -> str:
    """The name that a service can load it by: the catalogue knows short ones too."""
    name, at, revision = model.partition("@")
    entry = None if "/" in name else find_entry(name)
    return f"{entry.id}{at}{revision}" if entry else model


def _plan_replica(request: PlanRequest, shape: ModelShape, load: Load) -> tuple[str, Memory, Rate]:
    if request.gpu is None:
        config = ModelConfig(request.model, num_devices=request.node_spec.gpus_per_replica)
        measured = measure(config, load)
        return measured.device, measured.memory, measured.rate
    device = DEVICES[request.gpu]
    memory = estimate_memory(shape, device, _DTYPE, request.node_spec.gpus_per_replica)
    rate = estimate_rate(shape, device, load, request.matrix_flops, request.efficiency)
    return device.name, memory, rate


def build_serve_config(model: str, fleet: Fleet, node_spec: NodeSpec) -> dict[str, Any]:
    """A Serve config of one cluster, as `serve deploy` takes it."""
    served: dict[str, Any] = {
        "name": model,
        "num_replicas": -(-fleet.num_replicas // fleet.num_clusters),
    }
    if node_spec.gpus_per_replica > 1:
        served["num_gpus"] = node_spec.gpus_per_replica
    return {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "skyreward",
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": {
                    "num_gateways": -(-fleet.num_gateways // fleet.num_clusters),
                    "models": [served],
                },
            }
        ],
    }


def build_start_command(model: str, fleet: Fleet, node_spec: NodeSpec) -> str:
    """What starts it: on one node by itself, on several through a config."""
    if fleet.num_nodes > 1 or node_spec.gpus_per_replica > 1:
        each = " on each cluster" if fleet.num_clusters > 1 else ""
        return f"serve deploy plan.yaml   # written by -o plan.yaml{each}"
    gateways = f"SKYREWARD_NUM_GATEWAYS={fleet.num_gateways} " if fleet.num_gateways > 1 else ""
    replicas = f" --replicas {fleet.num_replicas}" if fleet.num_replicas > 1 else ""
    return f"{gateways}skyreward serve --model {shlex.quote(model)}{replicas}"
