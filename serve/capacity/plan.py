"""Capacity plans: one replica, the fleet for a load, and the command that starts it.

The fleet is the load divided by rates. The rate of a gateway was measured on two CPU cores in front
of a simulated GPU, see docs/operations/sizing.md.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rm_core import ModelConfig, find_entry
from serve.capacity.devices import DEVICES
from serve.capacity.measure import measure
from serve.capacity.replica import Load, Memory, Rate, estimate_memory, estimate_rate
from serve.capacity.shape import ModelShape, find_model_shape
from serve.errors import PlanError

_DTYPE = torch.bfloat16
# CPU of a gateway without Ray, with the vocabulary of Qwen. Printed by
# `python tests/bench/gateway.py --simulate-device h200 --sizes 0.6b --mfu 0.68 --tokenizer FOLDER`.
_REQUEST_CPU_S = 1.03e-3
_CONVERSATION_CPU_S = 0.14e-3
_TOKEN_CPU_S = 0.4e-6
# What all of Ray's processes add to a request: 3.2 to 6.4 ms by `python tests/stress/overhead.py`.
_RAY_CPU_S = 6.4e-3
# A gateway is one Python process. Above this share of a core, requests wait longer for the gateway
# than the gateway works for them.
_GATEWAY_UTILIZATION = 0.6
# Share of a node's cores for gateways; the rest is for replicas and Ray.
_GATEWAY_CORE_FRACTION = 0.5


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The hardware of a node and its use."""

    gpus_per_node: int  # number of GPUs of a node, all of one type
    cores_per_node: int  # number of CPU cores of a node
    gpus_per_replica: int  # number of GPUs that share the layers of a replica
    utilization: float  # target share of the time in which replicas are busy


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The inputs of a plan."""

    model: str  # name in the catalogue, a local folder or a hub id
    gpu: str | None  # key of `DEVICES`; None to measure the local device
    load: Load | None  # load to plan for; None for the capacity of one replica
    lengths: Load  # lengths of the conversations if `load` is None; its rate is ignored
    node_spec: NodeSpec  # hardware of the nodes and its use
    matrix_flops: float | None = None  # measured matrix rate of the device in FLOP/s, if known
    # Measured share of the matrix rate that the engine reaches, if known.
    efficiency: float | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet for a load."""

    num_replicas: int  # number of replicas of the model
    num_gateways: int  # number of gateway processes
    num_nodes: int  # number of machines
    gateway_cpu_s: float  # CPU seconds per second of all gateways


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """A plan. `command` starts the fleet, and `config` is its Serve config."""

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
    command: str
    config: Mapping[str, Any]


def make_plan(request: PlanRequest) -> CapacityPlan:
    """Compute a plan.

    Raises:
        PlanError: the model or the lengths do not fit the devices.
        ModelLoadError: the model does not exist, or cannot be loaded for a measurement.
    """
    shape = find_model_shape(request.model)
    lengths, node_spec = request.load or request.lengths, request.node_spec
    if lengths.conversation_tokens > shape.max_length:
        raise PlanError(
            f"a conversation has {lengths.conversation_tokens} tokens, but {shape.name} takes at "
            f"most {shape.max_length}; lower --prompt-tokens or --response-tokens"
        )
    device, memory, rate = _plan_replica(request, shape, lengths)
    per_replica = rate.conversations_per_s(lengths)
    capacity = per_replica * node_spec.utilization / (1 - lengths.cached_share)
    load = request.load or dataclasses.replace(lengths, conversations_per_s=capacity)
    fleet = size_fleet(load, rate, node_spec)
    name = _get_loadable_name(request.model)
    return CapacityPlan(
        model=shape.name,
        num_parameters=shape.num_parameters,
        sizes_from=shape.source,
        device=device,
        gpus_per_replica=node_spec.gpus_per_replica,
        load=load,
        memory=memory,
        rate=rate,
        conversations_per_s_per_replica=per_replica,
        fleet=fleet,
        command=_build_start_command(name, fleet, node_spec),
        config=build_serve_config(name, fleet, node_spec),
    )


def compute_request_cpu_s(load: Load) -> float:
    """Return the CPU seconds of a request on Ray, without the model."""
    num_tokens = load.group_size * load.conversation_tokens
    gateway_cpu_s = (
        _REQUEST_CPU_S + load.group_size * _CONVERSATION_CPU_S + num_tokens * _TOKEN_CPU_S
    )
    return gateway_cpu_s + _RAY_CPU_S


def size_fleet(load: Load, rate: Rate, node_spec: NodeSpec) -> Fleet:
    """Return the smallest fleet that stays within the target utilization."""
    computed_per_s = load.conversations_per_s * (1 - load.cached_share)
    num_replicas = _divide_up(
        computed_per_s, rate.conversations_per_s(load) * node_spec.utilization
    )
    cpu_s = load.conversations_per_s / load.group_size * compute_request_cpu_s(load)
    num_gateways = _divide_up(cpu_s, _GATEWAY_UTILIZATION)
    if num_replicas > 1:  # tolerate the loss of a gateway
        num_gateways = max(2, num_gateways)
    num_nodes = max(
        _divide_up(num_replicas * node_spec.gpus_per_replica, node_spec.gpus_per_node),
        _divide_up(num_gateways, node_spec.cores_per_node * _GATEWAY_CORE_FRACTION),
    )
    return Fleet(num_replicas, num_gateways, num_nodes, cpu_s)


def build_serve_config(model: str, fleet: Fleet, node_spec: NodeSpec) -> dict[str, Any]:
    """Return the Serve config of the fleet, for `serve deploy`."""
    model_settings: dict[str, Any] = {"name": model, "num_replicas": fleet.num_replicas}
    if node_spec.gpus_per_replica > 1:
        model_settings["num_gpus"] = node_spec.gpus_per_replica
    return {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "skyreward",
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": {"num_gateways": fleet.num_gateways, "models": [model_settings]},
            }
        ],
    }


def _divide_up(amount: float, capacity: float) -> int:
    """Return how many of a capacity an amount needs, at least 1."""
    # Round before `ceil`, so that floating-point error does not add one.
    return max(1, math.ceil(round(amount / capacity, 6)))


def _get_loadable_name(model: str) -> str:
    """Return the name by which a service can load the model; the catalogue has short names too."""
    name, at, revision = model.partition("@")
    entry = None if "/" in name else find_entry(name)
    return f"{entry.id}{at}{revision}" if entry else model


def _plan_replica(request: PlanRequest, shape: ModelShape, load: Load) -> tuple[str, Memory, Rate]:
    num_devices = request.node_spec.gpus_per_replica
    if request.gpu is None:
        measurement = measure(ModelConfig(request.model, num_devices=num_devices), load)
        return measurement.device, measurement.memory, measurement.rate
    device = DEVICES[request.gpu]
    memory = estimate_memory(shape, device, _DTYPE, num_devices)
    rate = estimate_rate(shape, device, load, request.matrix_flops, request.efficiency)
    return device.name, memory, rate


def _build_start_command(model: str, fleet: Fleet, node_spec: NodeSpec) -> str:
    if fleet.num_nodes > 1 or node_spec.gpus_per_replica > 1:
        return "serve deploy plan.yaml   # written by -o plan.yaml"
    gateways = f"SKYREWARD_NUM_GATEWAYS={fleet.num_gateways} " if fleet.num_gateways > 1 else ""
    replicas = f" --replicas {fleet.num_replicas}" if fleet.num_replicas > 1 else ""
    return f"{gateways}skyreward serve --model {shlex.quote(model)}{replicas}"
