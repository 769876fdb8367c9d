"""The number of replicas, gateways and nodes for a load, and the bottlenecks. Pure functions.

The cost of a gateway was measured on two CPU cores (docs/explanation/reliability.md): a request of
1,230 tokens takes 7.5 to 13.9 ms of CPU on Ray, for the whole service without the model.
`REQUEST_CPU_S` is the upper end minus the time of rendering, tokenizing and cache lookups, which
was measured separately (28 to 5,400 tokens, same machine).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from serve.capacity.load import Load
from serve.capacity.queueing import (
    QueueModel,
    RequestSampler,
    SimulatedRequest,
    SimulationResult,
    simulate,
)
from serve.capacity.replica import Memory, Rate

REQUEST_CPU_S = 11.2e-3
CONVERSATION_CPU_S = 0.13e-3
TOKEN_CPU_S = 2.1e-6
# A single small request took 11 to 17 ms longer than its forward pass on Ray; half of that is the
# CPU time above.
HOP_S = 5e-3
# A gateway is one Python process. Above this share of a core, requests wait longer for the gateway
# than the gateway works for them.
GATEWAY_UTILIZATION = 0.6
# Share of a node's cores for gateways; the rest is for replicas and Ray.
_GATEWAY_CORE_FRACTION = 0.5
_LINK_BYTES_PER_S = 10e9 / 8
# A request goes through the proxy to a gateway, and as token ids to a replica.
_TIMES_SENT = 2
# Maximum number of replicas of one Ray cluster. Every gateway connects to every replica, and one
# controller monitors all of them. Untested at this size; tested with two nodes and a few replicas.
_REPLICAS_PER_CLUSTER = 256

_SIMULATED_REPLICAS = 8
_SIMULATED_CONVERSATIONS = 12_000
_FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
# Coefficient of variation of the lengths: standard deviation divided by mean.
_LENGTH_CV = 0.5


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The hardware of a node and its use.

    Attributes:
        gpus_per_node: number of GPUs of a node, all of one type.
        cores_per_node: number of CPU cores of a node.
        gpus_per_replica: number of GPUs that share the layers of a replica.
        utilization: target share of the time in which replicas are busy.
        max_requests: the service's setting `max_requests`.
    """

    gpus_per_node: int
    cores_per_node: int
    gpus_per_replica: int
    utilization: float
    max_requests: int


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of a fleet: the resource, its maximum in conversations per second, the reason."""

    what: str
    conversations_per_s: float
    note: str


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """One load of the latency curve.

    Attributes:
        fraction: load as a fraction of the replicas' maximum rate.
        conversations_per_s: load of the whole fleet.
        p50_s: median latency of requests in seconds.
        p95_s: 95th percentile of the latency of requests in seconds.
        p99_s: 99th percentile of the latency of requests in seconds.
        mean_batch_tokens: mean number of tokens in a batch.
        busy: share of the time in which replicas are busy.
    """

    fraction: float
    conversations_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    mean_batch_tokens: float
    busy: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet for a load.

    Attributes:
        num_replicas: number of replicas of the model.
        num_gateways: number of gateway processes.
        num_nodes: number of machines.
        num_clusters: number of Ray clusters; several need a load balancer in front.
        gateway_cpu_s: CPU seconds per second of all gateways.
        limits: limits of the fleet, lowest first.
    """

    num_replicas: int
    num_gateways: int
    num_nodes: int
    num_clusters: int
    gateway_cpu_s: float
    limits: tuple[Limit, ...]


def compute_request_cpu_s(load: Load) -> float:
    """Return the CPU seconds of a request, without the model."""
    num_tokens = load.group_size * load.conversation_tokens
    return REQUEST_CPU_S + load.group_size * CONVERSATION_CPU_S + num_tokens * TOKEN_CPU_S


def size_fleet(load: Load, rate: Rate, node_spec: NodeSpec) -> Fleet:
    """Return the smallest fleet that stays within the target utilization."""
    computed_per_s = load.conversations_per_s * (1 - load.cached_share)
    per_replica = rate.conversations_per_s(load)
    # Round before `ceil`, so that floating-point error does not add a replica.
    num_replicas = max(
        1, math.ceil(round(computed_per_s / (per_replica * node_spec.utilization), 6))
    )
    cpu_s = load.requests_per_s * compute_request_cpu_s(load)
    num_gateways = max(1, math.ceil(round(cpu_s / GATEWAY_UTILIZATION, 6)))
    if num_replicas > 1:  # tolerate the loss of a gateway
        num_gateways = max(2, num_gateways)
    num_nodes = max(
        math.ceil(num_replicas * node_spec.gpus_per_replica / node_spec.gpus_per_node),
        math.ceil(num_gateways / (node_spec.cores_per_node * _GATEWAY_CORE_FRACTION)),
    )
    return Fleet(
        num_replicas=num_replicas,
        num_gateways=num_gateways,
        num_nodes=num_nodes,
        num_clusters=math.ceil(num_replicas / _REPLICAS_PER_CLUSTER),
        gateway_cpu_s=cpu_s,
        limits=_compute_limits(load, rate, node_spec, (num_replicas, num_gateways, num_nodes)),
    )


def _compute_limits(
    load: Load, rate: Rate, node_spec: NodeSpec, counts: tuple[int, int, int]
) -> tuple[Limit, ...]:
    num_replicas, num_gateways, num_nodes = counts
    per_replica = rate.conversations_per_s(load)
    cpu_s = compute_request_cpu_s(load) / load.group_size
    num_bytes = load.request_bytes * _TIMES_SENT / load.group_size
    # At full load a request waits for about two batches of its size, but at least the batch floor.
    request_s = max(rate.batch_floor_s, load.group_tokens / rate.tokens_per_s) * 2 + HOP_S
    limits = [
        Limit(
            "replicas",
            num_replicas * per_replica / (1 - load.cached_share),
            f"{per_replica:,.1f} computed conversations/s each ({rate.status})",
        ),
        Limit(
            "gateways",
            num_gateways / cpu_s,
            f"{cpu_s * 1e3:,.2f} ms of CPU per conversation, one core each",
        ),
        Limit(
            "requests in flight",
            num_gateways * node_spec.max_requests * load.group_size / request_s,
            f"max_requests {node_spec.max_requests} of each gateway, with empty queues",
        ),
        Limit(
            "network",
            num_nodes * _LINK_BYTES_PER_S / num_bytes,
            f"{num_bytes / 1e3:,.1f} KB per conversation, 10 Gbit/s per node",
        ),
    ]
    return tuple(sorted(limits, key=lambda limit: limit.conversations_per_s))


def simulate_latency_curve(
    load: Load, rate: Rate, memory: Memory, fleet: Fleet, seed: int = 0
) -> tuple[LatencyPoint, ...]:
    """Simulate the latency of requests at several fractions of the fleet's maximum rate.

    Of a large fleet, only a fraction is simulated, with replicas and gateways in proportion. The
    curve is conservative, because requests wait less in a larger fleet.
    """
    model = build_queue_model(rate, memory, fleet)
    per_replica = rate.conversations_per_s(load) / (1 - load.cached_share)
    num_requests = max(600, _SIMULATED_CONVERSATIONS // load.group_size)
    points = []
    for fraction in _FRACTIONS:
        requests_per_s = fraction * per_replica * model.num_replicas / load.group_size
        sampler = build_request_sampler(load)
        result = simulate(model, sampler, requests_per_s, num_requests, seed)
        points.append(_build_point(fraction, fraction * per_replica * fleet.num_replicas, result))
    return tuple(points)


def build_queue_model(rate: Rate, memory: Memory, fleet: Fleet) -> QueueModel:
    """Return the model of the simulation: the fleet, or a fraction of a large fleet."""
    num_replicas = min(fleet.num_replicas, _SIMULATED_REPLICAS)
    # Gateways are sized for the target utilization of the replicas, so a fraction of the fleet must
    # not have fewer gateways in proportion.
    num_gateways = math.ceil(fleet.num_gateways * num_replicas / fleet.num_replicas)
    return QueueModel(
        num_replicas=num_replicas,
        num_gateways=num_gateways,
        max_batch_tokens=memory.max_batch_tokens,
        token_s=1 / rate.tokens_per_s,
        batch_floor_s=rate.batch_floor_s,
        hop_s=HOP_S,
        request_cpu_s=REQUEST_CPU_S,
        conversation_cpu_s=CONVERSATION_CPU_S,
        token_cpu_s=TOKEN_CPU_S,
    )


def build_request_sampler(load: Load) -> RequestSampler:
    """Return a sampler of requests with log-normal lengths of prompts and responses.

    The standard deviation of the lengths is half of their mean. Each response is in the score cache
    with the probability `load.cached_share`.
    """
    sigma = math.sqrt(math.log(1 + _LENGTH_CV**2))

    def sample(rng: random.Random) -> SimulatedRequest:
        def sample_length(mean: int) -> int:
            return max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

        prompt_tokens = sample_length(load.prompt_tokens) if load.prompt_tokens else 0
        computed: list[int] = []
        cached: list[int] = []
        for _ in range(load.group_size):
            is_cached = rng.random() < load.cached_share
            (cached if is_cached else computed).append(sample_length(load.response_tokens))
        return SimulatedRequest(prompt_tokens, computed, cached)

    return sample


def _build_point(
    fraction: float, conversations_per_s: float, result: SimulationResult
) -> LatencyPoint:
    return LatencyPoint(
        fraction=fraction,
        conversations_per_s=conversations_per_s,
        p50_s=result.percentile(0.5),
        p95_s=result.percentile(0.95),
        p99_s=result.percentile(0.99),
        mean_batch_tokens=result.mean_batch_tokens,
        busy=result.busy,
    )
