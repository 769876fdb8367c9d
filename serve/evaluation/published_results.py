"""Published results of the catalogue, under the names of the local metrics.

A metric that covers only a part of the benchmark is not compared with one that covers all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from rm_core import find_entry, load_catalog
from rm_core.benchmarks.base import Benchmark, BenchmarkResult, SubsetScore
from rm_core.catalog.entries import CatalogEntry, PublishedResult, load_compared, load_sources
from serve.evaluation.result import (
    DIFFICULTY,
    MEAN_OF_SECTIONS,
    METRICS,
    OVERALL,
    MetricComparison,
)

_BEST_OF_N = "best-of-n"
_SCALE = {"percent": 100.0, "fraction": 1.0}
# Metrics that are published under another name than the local one.
_METRIC_ALIASES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("judgebench", OVERALL): (MEAN_OF_SECTIONS, "the plain mean of the four categories"),
}


class PublishedMetric(NamedTuple):
    """A published metric.

    Attributes:
        name: local name of the metric.
        value: value from 0 to 1.
        note: note of the source, or about the name; may be empty.
    """

    name: str
    value: float
    note: str


class PublishedRow(NamedTuple):
    """The results of one model from one source.

    Attributes:
        model: id on the hub.
        source: key into `load_sources()`.
        metrics: metrics by name, in the order of the source.
    """

    model: str
    source: str
    metrics: Mapping[str, PublishedMetric]


def iter_published_rows(benchmark: str) -> Iterator[PublishedRow]:
    """Yield the published rows of a benchmark, including those of models of others."""
    for entry in load_catalog():
        yield from _iter_rows(entry.id, benchmark, entry.published)
    for compared in load_compared():
        yield from _iter_rows(compared.id, benchmark, compared.published)


def compare_with_published(
    benchmark: Benchmark, names: Iterable[str], result: BenchmarkResult
) -> tuple[MetricComparison, ...]:
    """Compare a result with the published results of the same checkpoint.

    Args:
        benchmark: benchmark of the result.
        names: names of the checkpoint; the first name that the catalogue knows is used.
        result: local result.

    Returns:
        The comparisons; empty for a checkpoint that the catalogue does not know.
    """
    entry = next((entry for name in names if (entry := find_entry(name))), None)
    if entry is None:
        return ()
    sources = load_sources()
    comparisons = []
    for row in _iter_rows(entry.id, benchmark.name, entry.published):
        for index, metric in enumerate(row.metrics.values()):
            reasons = [metric.note] if metric.note else []
            if index == 0:
                reasons += _find_known_issues(entry, benchmark)
            comparisons.append(
                MetricComparison(
                    metric=metric.name,
                    ours=get_complete_metric(result, metric.name),
                    published=metric.value,
                    source=sources[row.source],
                    note=" ".join(_format_sentence(reason) for reason in reasons),
                )
            )
    return tuple(comparisons)


def get_complete_metric(result: BenchmarkResult, name: str) -> float | None:
    """Return a metric of a result; None if the metric is partial or missing.

    Args:
        result: local result.
        name: `overall`, or the name of a section, subset, difficulty, or other metric of `extra`.
    """
    scores = {**result.subsets, **result.sections}
    if name in scores:
        return _get_complete_score(scores[name], result)
    if name == _BEST_OF_N:
        sections = [score for key, score in result.sections.items() if key.startswith(f"{name}/")]
        values = [
            value
            for section in sections
            if (value := _get_complete_score(section, result)) is not None
        ]
        return sum(values) / 2 if len(values) == 2 else None
    if result.missing:
        return None
    if name == OVERALL:
        return result.overall
    groups = (result.extra.get(key, {}) for key in (DIFFICULTY, METRICS))
    value = {**result.extra, **{k: v for group in groups for k, v in group.items()}}.get(name)
    return value if isinstance(value, float) else None


def _get_complete_score(subset: SubsetScore, result: BenchmarkResult) -> float | None:
    if subset.num_expected is None:
        return None if result.missing else subset.score
    return subset.score if subset.num_items == subset.num_expected else None


def _iter_rows(
    model: str, benchmark: str, published: Iterable[PublishedResult]
) -> Iterator[PublishedRow]:
    by_source: dict[str, dict[str, PublishedMetric]] = {}
    for one in published:
        if one.benchmark == benchmark:
            name, remark = _METRIC_ALIASES.get((benchmark, one.metric), (one.metric, ""))
            note = "; ".join(dict.fromkeys(text for text in (one.note, remark) if text))
            metrics = by_source.setdefault(one.source, {})
            metrics[name] = PublishedMetric(name, one.value / _SCALE[one.unit], note)
    for source, metrics in by_source.items():
        yield PublishedRow(model, source, metrics)


def _find_known_issues(entry: CatalogEntry, benchmark: Benchmark) -> list[str]:
    # `RewardBench` must not match `RewardBench 2`.
    pattern = re.compile(rf"\b{re.escape(benchmark.title)}(?! \d)\b")
    texts = [str(issue.value) for issue in entry.known_issues if issue.value]
    return [text for text in texts if pattern.search(text)]


def _format_sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
