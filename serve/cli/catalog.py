"""Output of `skyreward models` and `skyreward verify`, as tables or as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from rm_core import ModelInfo, find_entry, load_catalog, seeds_dir
from rm_core.attention import AttentionChoice, AttentionTarget, choose_attention
from rm_core.catalog.entries import CatalogEntry, Fact, load_sources
from rm_core.config import Kind
from rm_core.verification import Check
from serve.console import Console
from serve.errors import UnknownCheckpointError
from serve.escaping import dump_json

# Title of the table, and the benchmark of its column with results, by kind.
_KINDS: Mapping[Kind, tuple[str, str]] = {
    "classifier": ("Served as classifiers: a reward for each conversation", "RewardBench"),
    "step": ("Served as step models: a reward for each step of a solution", "ProcessBench"),
    "judge": ("Served as judges: which of two responses is better", "RewardBench"),
}


def print_catalog(as_json: bool) -> None:
    """Print all known checkpoints by kind."""
    if as_json:
        _print_json({"models": [dataclasses.asdict(entry) for entry in load_catalog()]})
        return
    console = Console()
    for kind, (title, benchmark) in _KINDS.items():
        table = _create_table(
            title, "checkpoint", "family", "context", benchmark, "local attention", "licence"
        )
        for entry in load_catalog():
            if entry.kind == kind:
                table.add_row(
                    entry.id,
                    entry.family,
                    str(entry.recommended_max_length or "unconfirmed"),
                    _format_overall(entry, benchmark.lower()),
                    choose_local_attention(entry).name,
                    str(entry.licence.value),
                )
        console.print(table)
    reasons = {choice.name: choice.reason for choice in map(choose_local_attention, load_catalog())}
    for name, reason in reasons.items():
        console.print(f"local attention: {name}: {reason}")
    console.print(
        "`skyreward models NAME` shows all facts of a checkpoint. The weights are not part of "
        "this project, except those of `demo`."
    )


def print_entry(name: str, as_json: bool) -> None:
    """Print a checkpoint with the status and the source of every fact."""
    entry = find_entry(name)
    if entry is None:
        known = ", ".join(e.name for e in load_catalog())
        card = f"; its card is {seeds_dir() / 'demo' / 'README.md'}" if name == "demo" else ""
        raise UnknownCheckpointError(
            f"{name!r} is not in the catalogue{card}; the names are: {known}"
        )
    if as_json:
        _print_json(dataclasses.asdict(entry))
        return
    console = Console()
    steps = f", step format {entry.step_format}" if entry.step_format else ""
    console.print(f"served as: {entry.kind}{steps}")
    facts = _create_table(entry.id, "fact", "value", "status", "source")
    for label, fact in _collect_facts(entry):
        facts.add_row(label, _format_value(fact), fact.status, fact.source)
    console.print(facts)
    choice = choose_local_attention(entry)
    console.print(f"attention on this machine: {choice.name} ({choice.reason})")
    published = _create_table("Published", "benchmark", "metric", "value", "source", "note")
    for row in entry.published:
        unit = "%" if row.unit == "percent" else ""
        published.add_row(row.benchmark, row.metric, f"{row.value}{unit}", row.source, row.note)
    console.print(published)
    cited = {f.source for _, f in _collect_facts(entry)} | {row.source for row in entry.published}
    for key, citation in load_sources().items():
        if key in cited:
            console.print(f"{key}: {citation}")


def choose_local_attention(entry: CatalogEntry) -> AttentionChoice:
    """Return the backend that `attention: auto` selects for a checkpoint on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    is_gemma2 = entry.family == "gemma2"
    target = AttentionTarget(entry.family, device, dtype, is_gemma2, has_window=is_gemma2)
    return choose_attention(target)


def print_checks(model: ModelInfo, checks: Sequence[Check]) -> None:
    """Print the results of `skyreward verify`."""
    console = Console()
    for key in ("catalogue_id", "revision", "dtype", "device", "attention", "attention_reason"):
        console.print(f"{key}: {getattr(model, key)}")
    table = _create_table(
        "Checks", "check", "ours", "expected", "difference", "allowed", "", "against"
    )
    for check in checks:
        table.add_row(
            check.name,
            "-" if check.ours is None else f"{check.ours:.6g}",
            f"{check.expected:.6g}",
            "-" if check.difference is None else f"{check.difference:.1e}",
            f"{check.tolerance:.1e}",
            "ok" if check.passed else "WRONG",
            check.note,
        )
    console.print(table)
    num_wrong = sum(not check.passed for check in checks)
    console.print(f"{len(checks)} checks, {num_wrong} wrong")


def _create_table(title: str, first: str, *others: str) -> Table:
    """Return an empty table whose first column, the name of a row, is never wrapped."""
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header)
    return table


def _format_overall(entry: CatalogEntry, benchmark: str) -> str:
    rows = [p for p in entry.published if p.benchmark == benchmark and p.metric == "overall"]
    return " / ".join(dict.fromkeys(f"{row.value:g}" for row in rows)) or "-"


def _collect_facts(record: Any, prefix: str = "") -> list[tuple[str, Fact[Any]]]:
    """Return every fact of a record with its dotted name."""
    if isinstance(record, Fact):
        return [(prefix, record)]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        items = [(f.name, getattr(record, f.name)) for f in dataclasses.fields(record)]
    elif isinstance(record, Mapping):
        items = list(record.items())
    elif isinstance(record, tuple):
        items = [(str(i), item) for i, item in enumerate(record)]
    else:
        return []
    return [
        named_fact
        for name, item in items
        for named_fact in _collect_facts(item, f"{prefix}.{name}" if prefix else str(name))
    ]


def _format_value(fact: Fact[Any]) -> str:
    value = fact.value
    text = "unconfirmed" if value is None else str(value)
    if isinstance(value, tuple):
        text = ", ".join(map(str, value))
    return f"{text} ({fact.note})" if fact.note else text


def _print_json(value: Any) -> None:
    print(dump_json(value, indent=2, default=dict))
