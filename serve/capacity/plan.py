"""Capacity plans: one replica, the fleet, its latency, and the command that starts it."""

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
    """The inputs of a plan.

    Attributes:
        model: name in the catalogue, a local folder or a hub id.
        gpu: key of `DEVICES`; None to measure the local device.
        load: load to plan for; None for the capacity of one replica.
        lengths: lengths of the conversations if `load` is None; its rate is ignored.
        node_spec: hardware of the nodes and its use.
        matrix_flops: measured matrix rate of the device in FLOP/s, if known.
        efficiency: measured share of the matrix rate that the engine reaches, if known.
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
    """A plan. `command` starts the fleet, and `config` is the Serve config of one cluster."""

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
    """Compute a plan.

    Raises:
        PlanError: the model or the lengths do not fit the devices.
        ModelLoadError: the model does not exist, or cannot be loaded for a measurement.
    """
    shape = find_model_shape(request.model)
    lengths = request.load or request.lengths
    if lengths.conversation_tokens > shape.max_length:
        raise PlanError(
            f"a conversation has {lengths.conversation_tokens} tokens, but {shape.name} takes at "
            f"most {shape.max_length}; lower --prompt-tokens or --response-tokens"
        )
    device, memory, rate = _plan_replica(request, shape, lengths)
    per_replica = rate.conversations_per_s(lengths)
    capacity = per_replica * request.node_spec.utilization / (1 - lengths.cached_share)
    load = request.load or dataclasses.replace(lengths, conversations_per_s=capacity)
    fleet = size_fleet(load, rate, request.node_spec)
    name = _get_loadable_name(request.model)
    return CapacityPlan(
        model=shape.name,
        num_parameters=shape.num_parameters,
        sizes_from=shape.source,
        device=device,
        gpus_per_replica=request.node_spec.gpus_per_replica,
        load=load,
        memory=memory,
        rate=rate,
        conversations_per_s_per_replica=per_replica,
        fleet=fleet,
        curve=simulate_latency_curve(load, rate, memory, fleet),
        command=build_start_command(name, fleet, request.node_spec),
        config=build_serve_config(name, fleet, request.node_spec),
    )


def _get_loadable_name(model: str) -> str:
    """Return the name by which a service can load the model; the catalogue has short names too."""
    name, at, revision = model.partition("@")
    entry = None if "/" in name else find_entry(name)
    return f"{entry.id}{at}{revision}" if entry else model


def _plan_replica(request: PlanRequest, shape: ModelShape, load: Load) -> tuple[str, Memory, Rate]:
    if request.gpu is None:
        config = ModelConfig(request.model, num_devices=request.node_spec.gpus_per_replica)
        measurement = measure(config, load)
        return measurement.device, measurement.memory, measurement.rate
    device = DEVICES[request.gpu]
    memory = estimate_memory(shape, device, _DTYPE, request.node_spec.gpus_per_replica)
    rate = estimate_rate(shape, device, load, request.matrix_flops, request.efficiency)
    return device.name, memory, rate


def build_serve_config(model: str, fleet: Fleet, node_spec: NodeSpec) -> dict[str, Any]:
    """Return the Serve config of one cluster, for `serve deploy`."""
    model_settings: dict[str, Any] = {
        "name": model,
        "num_replicas": -(-fleet.num_replicas // fleet.num_clusters),
    }
    if node_spec.gpus_per_replica > 1:
        model_settings["num_gpus"] = node_spec.gpus_per_replica
    return {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "skyreward",
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": {
                    "num_gateways": -(-fleet.num_gateways // fleet.num_clusters),
                    "models": [model_settings],
                },
            }
        ],
    }


def build_start_command(model: str, fleet: Fleet, node_spec: NodeSpec) -> str:
    """Return the command that starts the fleet, `skyreward serve` or `serve deploy`."""
    if fleet.num_nodes > 1 or node_spec.gpus_per_replica > 1:
        suffix = " on each cluster" if fleet.num_clusters > 1 else ""
        return f"serve deploy plan.yaml   # written by -o plan.yaml{suffix}"
    gateways = f"SKYREWARD_NUM_GATEWAYS={fleet.num_gateways} " if fleet.num_gateways > 1 else ""
    replicas = f" --replicas {fleet.num_replicas}" if fleet.num_replicas > 1 else ""
    return f"{gateways}skyreward serve --model {shlex.quote(model)}{replicas}"
