"""How many replicas, gateways and nodes a load needs, and what gives out first. Pure.

What a gateway costs was measured on two CPU cores (README, "Held up"): 7.5 to 13.9 ms of CPU for a
post of 1,230 tokens on Ray, all of the service beside the model; here is the upper end, less what
rendering, tokenizing and looking up took by themselves (28 to 5,400 tokens, same machine).
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
# A lone small post took 11 to 17 ms longer than its forward pass on Ray; half of that is CPU above.
HOP_S = 5e-3
# A gateway is one Python process. Above this share of a core posts wait for it longer than it
# works for them.
GATEWAY_UTILIZATION = 0.6
# Of a node's cores: gateways may have this part; the rest is the replicas' and Ray's own.
_GATEWAY_CORE_FRACTION = 0.5
_LINK_BYTES_PER_S = 10e9 / 8
# A post goes through the door to a gateway, and as token ids to a replica.
_TIMES_SENT = 2
# Replicas of one Ray cluster. Every gateway talks to every replica, and one controller watches all.
# Nothing of this size was tried: two nodes and a few replicas were.
_REPLICAS_PER_CLUSTER = 256

_SIMULATED_REPLICAS = 8
_SIMULATED_CONVERSATIONS = 12_000
_FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
# Of lengths, over their mean.
_LENGTH_CV = 0.5


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What nodes are made of, and what they may be used for.

    Attributes:
        gpus_per_node: of one kind.
        cores_per_node: of its CPUs.
        gpus_per_replica: over which the layers are spread.
        utilization: share of the time in which replicas are to be busy at the load.
        max_requests: the setting of that name.
    """

    gpus_per_node: int
    cores_per_node: int
    gpus_per_replica: int
    utilization: float
    max_requests: int


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that gives out: at how many conversations per second, and why."""

    what: str
    conversations_per_s: float
    note: str


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """One load of the latency curve.

    Attributes:
        fraction: of what the replicas can do at most.
        conversations_per_s: of the whole fleet.
        p50_s: latency of posts.
        p95_s: latency of posts.
        p99_s: latency of posts.
        mean_batch_tokens: how full batches are.
        busy: share of the time in which replicas work.
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
    """What a load needs.

    Attributes:
        num_replicas: copies of the model.
        num_gateways: processes that speak HTTP.
        num_nodes: machines.
        num_clusters: Ray clusters, behind a balancer if there are several.
        gateway_cpu_s: CPU seconds per second of all gateways.
        limits: what gives out, first things first.
    """

    num_replicas: int
    num_gateways: int
    num_nodes: int
    num_clusters: int
    gateway_cpu_s: float
    limits: tuple[Limit, ...]


def compute_request_cpu_s(load: Load) -> float:
    """CPU of a post beside the model."""
    tokens = load.group_size * load.conversation_tokens
    return REQUEST_CPU_S + load.group_size * CONVERSATION_CPU_S + tokens * TOKEN_CPU_S


def size_fleet(load: Load, rate: Rate, node_spec: NodeSpec) -> Fleet:
    """The smallest fleet that keeps to the utilization."""
    computed = load.conversations_per_s * (1 - load.cached_share)
    one = rate.conversations_per_s(load)
    # Rounded, or what is exactly enough would get one more.
    num_replicas = max(1, math.ceil(round(computed / (one * node_spec.utilization), 6)))
    cpu_s = load.requests_per_s * compute_request_cpu_s(load)
    num_gateways = max(1, math.ceil(round(cpu_s / GATEWAY_UTILIZATION, 6)))
    if num_replicas > 1:  # so that one may die
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
    load: Load, rate: Rate, node_spec: NodeSpec, numbers: tuple[int, int, int]
) -> tuple[Limit, ...]:
    num_replicas, num_gateways, num_nodes = numbers
    one = rate.conversations_per_s(load)
    cpu = compute_request_cpu_s(load) / load.group_size
    sent = load.request_bytes * _TIMES_SENT / load.group_size
    # A post in a full house waits for about two batches of its own size and the floor.
    held_s = max(rate.batch_floor_s, load.group_tokens / rate.tokens_per_s) * 2 + HOP_S
    limits = [
        Limit(
            "replicas",
            num_replicas * one / (1 - load.cached_share),
            f"{one:,.1f} computed conversations/s each ({rate.status})",
        ),
        Limit(
            "gateways",
            num_gateways / cpu,
            f"{cpu * 1e3:,.2f} ms of CPU a conversation, one core each",
        ),
        Limit(
            "requests in flight",
            num_gateways * node_spec.max_requests * load.group_size / held_s,
            f"max_requests {node_spec.max_requests} in each gateway, if nothing waits",
        ),
        Limit(
            "network",
            num_nodes * _LINK_BYTES_PER_S / sent,
            f"{sent / 1e3:,.1f} KB a conversation, 10 Gbit/s a node",
        ),
    ]
    return tuple(sorted(limits, key=lambda limit: limit.conversations_per_s))


def simulate_latency_curve(
    load: Load, rate: Rate, memory: Memory, fleet: Fleet, seed: int = 0
) -> tuple[LatencyPoint, ...]:
    """Latency of posts by how much of the fleet's rate is asked for.

    A slice of a large fleet is simulated, its replicas and gateways in the same proportion: more
    of them wait less, so the curve is on the safe side.
    """
    station = build_queue_model(rate, memory, fleet)
    one = rate.conversations_per_s(load) / (1 - load.cached_share)
    num_posts = max(600, _SIMULATED_CONVERSATIONS // load.group_size)
    points = []
    for fraction in _FRACTIONS:
        posts_per_s = fraction * one * station.num_replicas / load.group_size
        outcome = simulate(station, build_request_sampler(load), posts_per_s, num_posts, seed)
        points.append(_build_point(fraction, fraction * one * fleet.num_replicas, outcome))
    return tuple(points)


def build_queue_model(rate: Rate, memory: Memory, fleet: Fleet) -> QueueModel:
    """The fleet, or a slice of it, as what is simulated."""
    num_replicas = min(fleet.num_replicas, _SIMULATED_REPLICAS)
    # Gateways are sized for the load at which replicas are busy for a part of the time only; a
    # slice must not have less of them.
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
    """Posts whose prompts and responses vary log-normally by half of their mean.

    Each response is known to the cache with the probability that the load has.
    """
    sigma = math.sqrt(math.log(1 + _LENGTH_CV**2))

    def draw(source: random.Random) -> SimulatedRequest:
        def length(mean: int) -> int:
            return max(1, round(source.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

        prompt = length(load.prompt_tokens) if load.prompt_tokens else 0
        computed: list[int] = []
        cached: list[int] = []
        for _ in range(load.group_size):
            known = source.random() < load.cached_share
            (cached if known else computed).append(length(load.response_tokens))
        return SimulatedRequest(prompt, computed, cached)

    return draw


def _build_point(
    fraction: float, conversations_per_s: float, outcome: SimulationResult
) -> LatencyPoint:
    return LatencyPoint(
        fraction=fraction,
        conversations_per_s=conversations_per_s,
        p50_s=outcome.percentile(0.5),
        p95_s=outcome.percentile(0.95),
        p99_s=outcome.percentile(0.99),
        mean_batch_tokens=outcome.mean_batch_tokens,
        busy=outcome.busy,
    )
