"""Published figures of the catalogue, by the names that our figures have.

A figure that covers a part of the benchmark is not set beside one that covers all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from rm_core import find_entry, load_catalog, load_not_served
from rm_core.benchmarks.base import Benchmark, BenchmarkResult, SubsetScore
from rm_core.catalog.entries import CatalogEntry, PublishedResult, load_sources
from serve.evaluation.metric_names import DIFFICULTY, MEAN_OF_SECTIONS, OVERALL
from serve.evaluation.result import MetricComparison

_BEST_OF_N = "best-of-n"
_SCALE = {"percent": 100.0, "fraction": 1.0}
# What others print as a benchmark's figure, where ours has another name.
_METRIC_ALIASES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("judgebench", OVERALL): (MEAN_OF_SECTIONS, "the plain mean of the four categories"),
}


class PublishedMetric(NamedTuple):
    """A published figure.

    Attributes:
        name: as ours.
        value: 0 to 1.
        note: of its source, or on its name; may be empty.
    """

    name: str
    value: float
    note: str


class PublishedRow(NamedTuple):
    """What one source publishes of one model.

    Attributes:
        model: id on the hub.
        source: key into `load_sources()`.
        metrics: by name, in the order of the source.
    """

    model: str
    source: str
    metrics: Mapping[str, PublishedMetric]


def iter_published_rows(benchmark: str) -> Iterator[PublishedRow]:
    """All that the catalogue has of a benchmark, also of what is not served."""
    for entry in load_catalog():
        yield from _iter_rows(entry.id, benchmark, entry.published)
    for other in load_not_served():
        yield from _iter_rows(other.id, benchmark, other.published)


def compare_with_published(
    benchmark: Benchmark, names: Iterable[str], result: BenchmarkResult
) -> tuple[MetricComparison, ...]:
    """Our figures beside the published ones of the same checkpoint.

    Args:
        benchmark: that both are of.
        names: under which the catalogue may know the checkpoint; the first that it knows counts.
        figures: ours.

    Returns:
        Nothing for a checkpoint that the catalogue does not know.
    """
    entry = next((entry for name in names if (entry := find_entry(name))), None)
    if entry is None:
        return ()
    sources = load_sources()
    found = []
    for row in _iter_rows(entry.id, benchmark.name, entry.published):
        for index, metric in enumerate(row.metrics.values()):
            reasons = [metric.note] if metric.note else []
            if index == 0:
                reasons += _find_known_issues(entry, benchmark)
            found.append(
                MetricComparison(
                    metric=metric.name,
                    ours=get_complete_metric(result, metric.name),
                    published=metric.value,
                    source=sources[row.source],
                    note=" ".join(_sentence(reason) for reason in reasons),
                )
            )
    return tuple(found)


def get_complete_metric(result: BenchmarkResult, name: str) -> float | None:
    """One of our figures, if it covers all that its name means.

    Args:
        figures: ours.
        name: `overall`, or a section, subset, difficulty, or a figure of `more`.
    """
    parts = {**result.subsets, **result.sections}
    if name in parts:
        return _get_complete_score(parts[name], result)
    if name == _BEST_OF_N:
        halves = [part for key, part in result.sections.items() if key.startswith(f"{name}/")]
        values = [
            value for half in halves if (value := _get_complete_score(half, result)) is not None
        ]
        return sum(values) / 2 if len(values) == 2 else None
    if result.missing:
        return None
    if name == OVERALL:
        return result.overall
    value = {**result.extra, **result.extra.get(DIFFICULTY, {})}.get(name)
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
            name, about = _METRIC_ALIASES.get((benchmark, one.metric), (one.metric, ""))
            note = "; ".join(dict.fromkeys(text for text in (one.note, about) if text))
            metrics = by_source.setdefault(one.source, {})
            metrics[name] = PublishedMetric(name, one.value / _SCALE[one.unit], note)
    for source, metrics in by_source.items():
        yield PublishedRow(model, source, metrics)


def _find_known_issues(entry: CatalogEntry, benchmark: Benchmark) -> list[str]:
    # `RewardBench` is the start of `RewardBench 2` too.
    named = re.compile(rf"\b{re.escape(benchmark.title)}(?! \d)\b")
    texts = [str(issue.value) for issue in entry.known_issues if issue.value]
    return [text for text in texts if named.search(text)]


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
