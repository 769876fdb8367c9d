"""What an evaluation found: made by `serve.evaluation.command`, shown by report and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Benchmark, BenchmarkResult, Item, ScoredItem
from serve.jobs.summary import Summary


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One of our figures beside a published one of the same checkpoint.

    Attributes:
        metric: `overall`, or the name of a section, subset or difficulty.
        ours: 0 to 1; None if it was not computed.
        published: 0 to 1.
        source: where it was published, as people read it.
        note: known reasons for a difference; may be empty.
    """

    metric: str
    ours: float | None
    published: float
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on one benchmark.

    Attributes:
        benchmark: which one.
        model: as people call it.
        figures: what the benchmark says.
        scored: items with their rewards, in the order of the data.
        failed: items without, and why.
        used: what decides the figures, by name, as people read it: data, truncation, longest
            length, dtype, attention, revision, ties.
        compared: with what is published of the same checkpoint.
        summary: what scoring took; None where rewards came from a file.
    """

    benchmark: Benchmark
    model: str
    result: BenchmarkResult
    scored_items: tuple[ScoredItem, ...]
    failed_items: tuple[tuple[Item, ScoreError], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    comparisons: tuple[MetricComparison, ...] = ()
    summary: Summary | None = None
