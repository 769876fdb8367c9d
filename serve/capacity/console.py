"""A capacity plan as tables or as JSON."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from serve.capacity.plan import CapacityPlan
from serve.console import Console
from serve.escaping import dump_json

_GIB = 2**30


def print_plan(plan: CapacityPlan, as_json: bool) -> None:
    """Print a plan on standard output."""
    if as_json:
        print(dump_json(dataclasses.asdict(plan), indent=2, default=dict))
        return
    console = Console(width=120)
    for table in (
        _build_replica_table(plan),
        _build_fleet_table(plan),
        _build_limits_table(plan),
        _build_curve_table(plan),
    ):
        console.print(table)
    console.print(f"start: {plan.command}", soft_wrap=True)
    if plan.rate.status == "inferred":
        console.print(
            "The rate is inferred from data sheets, not measured. To measure it on such a device, "
            "run `make gpu-check` and pass --matrix-tflops and --mfu, or use --measure."
        )


def _build_replica_table(plan: CapacityPlan) -> Table:
    memory, rate, load = plan.memory, plan.rate, plan.load
    table = _new_table(f"One replica of {plan.model}")
    prefix = f"{plan.gpus_per_replica} x " if plan.gpus_per_replica > 1 else ""
    table.add_row("device", f"{prefix}{plan.device}", "")
    table.add_row("parameters", _format_parameters(plan.num_parameters), plan.sizes_from)
    table.add_row(
        "weights", _format_bytes(memory.weights_bytes), "on the fullest device" * bool(prefix)
    )
    if memory.device_bytes:
        table.add_row("CUDA runtime", _format_bytes(memory.runtime_bytes), "inferred")
        activation_bytes = _format_bytes(memory.activation_bytes)
        table.add_row("largest batch", activation_bytes, "in addition to the weights")
        share = memory.peak_bytes / memory.device_bytes
        table.add_row("peak", _format_bytes(memory.peak_bytes), f"{share:.0%} of the device")
    table.add_row("max_batch_tokens", f"{memory.max_batch_tokens:,}", memory.reason)
    interval = f" ({rate.low:,.0f} to {rate.high:,.0f})" if rate.low < rate.high else ""
    table.add_row("distinct tokens/s", f"{rate.tokens_per_s:,.0f}{interval}", rate.status)
    table.add_row("", "", rate.note)
    conversations_per_s = plan.conversations_per_s_per_replica
    table.add_row("conversations/s", f"{conversations_per_s:,.1f}", "never idle, full batches")
    total_per_distinct = load.group_size * load.conversation_tokens / load.group_tokens
    total_tokens_per_s = rate.tokens_per_s * total_per_distinct
    table.add_row("tokens/s, with shared prompts", f"{total_tokens_per_s:,.0f}", "")
    return table


def _build_fleet_table(plan: CapacityPlan) -> Table:
    load, fleet = plan.load, plan.fleet
    table = _new_table(
        f"For {load.conversations_per_s:,.1f} conversations/s "
        f"({load.conversations_per_s * 60:,.0f} per minute)"
    )
    lengths = (
        f"{load.prompt_tokens:,} + {load.response_tokens:,} tokens, {load.group_size} per prompt"
    )
    hit_rate = f"{load.cached_share:.0%} in the score cache" if load.cached_share else ""
    table.add_row("conversations", lengths, hit_rate)
    table.add_row("replicas", f"{fleet.num_replicas:,}", "")
    cpu = f"{fleet.gateway_cpu_s:,.2f} CPU cores of work"
    table.add_row("gateways", f"{fleet.num_gateways:,}", cpu)
    table.add_row("nodes", f"{fleet.num_nodes:,}", "")
    if fleet.num_clusters > 1:
        note = "with a load balancer in front; inferred"
        table.add_row("Ray clusters", f"{fleet.num_clusters:,}", note)
    return table


def _build_limits_table(plan: CapacityPlan) -> Table:
    table = Table(title="Bottlenecks", title_justify="left")
    for header in ("limit", "conversations/s", "times the load", "reason"):
        table.add_column(header)
    for limit in plan.fleet.limits:
        times = limit.conversations_per_s / plan.load.conversations_per_s
        table.add_row(limit.what, f"{limit.conversations_per_s:,.0f}", f"{times:,.2f}", limit.note)
    return table


def _build_curve_table(plan: CapacityPlan) -> Table:
    table = Table(title="Latency of a request (simulated)", title_justify="left")
    for header in (
        "of the maximum",
        "conversations/s",
        "p50",
        "p95",
        "p99",
        "tokens per batch",
        "busy",
    ):
        table.add_column(header, justify="right")
    for point in plan.curve:
        table.add_row(
            f"{point.fraction:.0%}",
            f"{point.conversations_per_s:,.1f}",
            *(f"{seconds * 1e3:,.0f} ms" for seconds in (point.p50_s, point.p95_s, point.p99_s)),
            f"{point.mean_batch_tokens:,.0f}",
            f"{point.busy:.0%}",
        )
    return table


def _new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column()
    return table


def _format_bytes(num_bytes: int) -> str:
    if num_bytes < _GIB / 10:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / _GIB:,.1f} GiB"


def _format_parameters(number: int) -> str:
    return f"{number / 1e9:.3f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"
