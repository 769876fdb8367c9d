"""The result of an evaluation: built by `serve.evaluation.command`, used by reports and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Benchmark, BenchmarkResult, Item, ScoredItem
from serve.jobs.summary import Summary


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
