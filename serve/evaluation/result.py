"""The result of an evaluation: metrics, comparisons with published ones, and their provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Benchmark, BenchmarkResult, Item, ScoredItem
from serve.evaluation.data import BenchmarkData
from serve.evaluation.runner import ItemRewards, encode_items
from serve.jobs.summary import Summary

OVERALL = "overall"
MEAN_OF_SECTIONS = "mean_of_sections"
DIFFICULTY = "difficulty"
METRICS = "metrics"
_TIES = {
    "rewardbench2": "a shared best place counts in part; wrong in Ties",
    "judgebench": "read as B>A",
    "plan-rewardbench": "half right, up to a difference of 0.0001",
}
_SCORING_KEYS = (
    "step_format",
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


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """A local and a published metric of the same checkpoint.

    Attributes:
        metric: `overall`, or the name of a section, subset or difficulty.
        ours: local value from 0 to 1; None if it was not computed.
        published: published value from 0 to 1.
        source: title of the publication.
        note: known reasons for a difference; may be empty.
    """

    metric: str
    ours: float | None
    published: float
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The evaluation of one model on one benchmark.

    Attributes:
        benchmark: the benchmark.
        model: name of the model.
        result: metrics of the benchmark.
        scored_items: items with their rewards, in the order of the data.
        failed_items: items without rewards, and their errors.
        provenance: settings that affect the result, by display name: data, truncation, maximum
            length, dtype, attention, revision, ties.
        comparisons: comparisons with published results of the same checkpoint.
        summary: summary of the scoring job; None if rewards came from a file.
    """

    benchmark: Benchmark
    model: str
    result: BenchmarkResult
    scored_items: tuple[ScoredItem, ...]
    failed_items: tuple[tuple[Item, ScoreError], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    comparisons: tuple[MetricComparison, ...] = ()
    summary: Summary | None = None


def collect_metrics(result: BenchmarkResult) -> dict[str, float | None]:
    """Return the metrics of a table: overall first, then sections, difficulties and other metrics.

    Without an overall score, the scores of subsets follow.
    """
    metrics: dict[str, float | None] = {OVERALL: result.overall}
    if MEAN_OF_SECTIONS in result.extra:
        metrics[MEAN_OF_SECTIONS] = result.extra[MEAN_OF_SECTIONS]
    metrics |= {name: section.score for name, section in result.sections.items()}
    metrics |= result.extra.get(DIFFICULTY, {})
    metrics |= result.extra.get(METRICS, {})
    if result.overall is None:
        metrics |= {name: subset.score for name, subset in result.subsets.items()}
    return metrics


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
        # Of the items in their order, independent of the data's location.
        "items_sha256": hashlib.sha256(b"".join(encode_items(data.items))).hexdigest(),
        **({} if benchmark.kinds == ("step",) else {"ties": _TIES.get(benchmark.name, "wrong")}),
        **benchmark.options.to_dict(),
    }
    if provenance := rewards.provenance:
        model = provenance.model
        used |= {
            **({"step_format": model.step_format} if model.step_format else {}),
            # Only conversations of a classifier are truncated.
            "truncation": provenance.truncation if model.kind == "classifier" else "error",
            "max_length": model.max_length,
            "num_truncated": rewards.num_truncated,
            "bos": "exactly one",
            **model.fingerprint.as_dict(),
        }
    used["official"] = _describe_protocol(benchmark)
    return used


def inherit_provenance(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scoring provenance from the summary of an earlier evaluation of the rewards."""
    used = summary.get("used", {})
    return {name: used[name] for name in _SCORING_KEYS if name in used}


def _describe_protocol(benchmark: Benchmark) -> str:
    """Describe how the benchmark's official runner prepares its inputs."""
    protocol = benchmark.official_protocol
    length = (
        "the model's maximum length"
        if protocol.max_length is None
        else f"{protocol.max_length} tokens"
    )
    return f"{length}, truncation {protocol.truncation}, {protocol.dtype} ({protocol.source})"
