"""What decides the figures, named: the ways that published runs are known to differ in."""

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
    """What was used, by name, as JSON data.

    Args:
        benchmark: with its options.
        data: that was evaluated on.
        rewards: where they are from.
    """
    used: dict[str, Any] = {
        "data": data.name,
        "items_sha256": compute_digest(data),
        "ties": _TIES.get(benchmark.name, "wrong"),
        **benchmark.options.to_dict(),
    }
    if scored_by := rewards.provenance:
        model = scored_by.model
        used |= {
            "truncation": scored_by.truncation,
            "max_length": model.max_length,
            "num_truncated": rewards.num_truncated,
            "bos": "exactly one",
            **model.fingerprint.as_dict(),
        }
    used["official"] = describe_protocol(benchmark)
    return used


def describe_protocol(benchmark: Benchmark) -> str:
    """How the benchmark's own runner prepares text, in words."""
    how = benchmark.official_protocol
    length = "the model's longest length" if how.max_length is None else f"{how.max_length} tokens"
    return f"{length}, truncation {how.truncation}, {how.dtype} ({how.source})"


def inherit_provenance(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier evaluation of the same rewards says of how they were scored."""
    used = summary.get("used", {})
    return {name: used[name] for name in _SCORING_KEYS if name in used}


def compute_digest(data: BenchmarkData) -> str:
    """The same for the same items in the same order, wherever they were read from."""
    digest = hashlib.sha256()
    for line in encode_items(data.items):
        digest.update(line)
    return digest.hexdigest()
