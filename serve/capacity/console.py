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
    console.print(_build_replica_table(plan))
    console.print(_build_fleet_table(plan))
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
    table.add_row("distinct tokens/s", _format_range(plan, 1.0, 0), rate.status)
    table.add_row("", "", rate.note)
    per_token = load.group_size / load.group_tokens
    table.add_row("conversations/s", _format_range(plan, per_token, 1), "never idle, full batches")
    total_tokens_per_s = rate.conversations_per_s(load) * load.conversation_tokens
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
    return table


def _new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column()
    return table


def _format_range(plan: CapacityPlan, per_token: float, decimals: int) -> str:
    """Format the replica's rate, and its range if it is inferred, in units per distinct token."""
    value, low, high = (
        f"{rate * per_token:,.{decimals}f}"
        for rate in (plan.rate.tokens_per_s, plan.rate.low, plan.rate.high)
    )
    return value if low == high else f"{value} ({low} to {high})"


def _format_bytes(num_bytes: int) -> str:
    if num_bytes < _GIB / 10:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / _GIB:,.1f} GiB"


def _format_parameters(number: int) -> str:
    return f"{number / 1e9:.3f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"
