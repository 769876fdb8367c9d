"""Provenance of a result: the data and settings in which published runs are known to differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rm_core.benchmarks.base import Benchmark
from serve.evaluation.data import BenchmarkData
from serve.evaluation.runner import ItemRewards, encode_items

_TIES = {
    "rewardbench2": "a shared best place counts in part; wrong in Ties",
    "judgebench": "read as B>A",
}
_SCORING_KEYS = (
    "truncation",
    "max_length",
    "num_truncated",
    "bos",
    "revision",
    "template_sha256",
    "dtype",
    "attention",
    "template_date",
)


def collect_provenance(
    benchmark: Benchmark, data: BenchmarkData, rewards: ItemRewards
) -> dict[str, Any]:
    """Return the provenance of a result by name, as JSON data.

    Args:
        benchmark: benchmark with its options.
        data: items of the evaluation.
        rewards: rewards of the items and their provenance.
    """
    used: dict[str, Any] = {
        "data": data.name,
        "items_sha256": compute_digest(data),
        "ties": _TIES.get(benchmark.name, "wrong"),
        **benchmark.options.to_dict(),
    }
    if provenance := rewards.provenance:
        model = provenance.model
        used |= {
            "truncation": provenance.truncation,
            "max_length": model.max_length,
            "num_truncated": rewards.num_truncated,
            "bos": "exactly one",
            **model.fingerprint.as_dict(),
        }
    used["official"] = describe_protocol(benchmark)
    return used


def describe_protocol(benchmark: Benchmark) -> str:
    """Describe how the benchmark's official runner prepares its inputs."""
    protocol = benchmark.official_protocol
    length = (
        "the model's maximum length"
        if protocol.max_length is None
        else f"{protocol.max_length} tokens"
    )
    return f"{length}, truncation {protocol.truncation}, {protocol.dtype} ({protocol.source})"


def inherit_provenance(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scoring provenance from the summary of an earlier evaluation of the rewards."""
    used = summary.get("used", {})
    return {name: used[name] for name in _SCORING_KEYS if name in used}


def compute_digest(data: BenchmarkData) -> str:
    """Return the SHA-256 of the items in their order, independent of the data's location."""
    digest = hashlib.sha256()
    for line in encode_items(data.items):
        digest.update(line)
    return digest.hexdigest()
