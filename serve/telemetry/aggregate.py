"""Merge the metrics of several gateways into one response. Plain data and pure functions, no Ray.

Every gateway counts its own requests. The series of all gateways are exported side by side,
distinguished by the label `gateway`, and are not summed: a sum drops when a gateway dies.
Prometheus treats every drop of a counter as a restart from zero, and would report everything that
the other gateways ever counted as an increase of that moment. `sum by (...) (rate(...))` sums them
in the right order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prometheus_client.metrics_core import Metric

GATEWAY_LABEL = "gateway"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number: name and labels of its series, and its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric at one moment, as data that can be sent between processes.

    Attributes:
        name: name of the metric, without the `_total` of counters.
        kind: counter, gauge, histogram or info.
        documentation: the HELP text.
        samples: one sample for each series.
    """

    name: str
    kind: str
    documentation: str
    samples: tuple[Sample, ...]


Snapshot = Sequence[MetricFamily]


class FamilyCollector:
    """Metric families as a prometheus_client collector, for its encoders of the text formats."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client requires of every collector."""
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def build_snapshot(metrics: Iterable[Metric]) -> list[MetricFamily]:
    """Convert the metrics of a registry, without the `_created` samples."""
    return [
        MetricFamily(
            name=metric.name,
            kind=metric.type,
            documentation=metric.documentation,
            samples=tuple(
                Sample(sample.name, tuple(sample.labels.items()), sample.value)
                for sample in metric.samples
                if sample.name != f"{metric.name}_created"
            ),
        )
        for metric in metrics
    ]


def merge_snapshots(snapshots: Mapping[str, Snapshot]) -> list[MetricFamily]:
    """Return one family per name, with the series of all gateways.

    Args:
        snapshots: the snapshot of each gateway, by gateway id. Where gateways of two versions
            disagree during an update, the first gateway that has the family decides its kind and
            its HELP text; series of another kind are dropped.
    """
    merged: dict[str, MetricFamily] = {}
    for gateway, snapshot in snapshots.items():
        for family in snapshot:
            labeled = tuple(
                replace(sample, labels=(*sample.labels, (GATEWAY_LABEL, gateway)))
                for sample in family.samples
            )
            existing = merged.get(family.name)
            if existing is not None and existing.kind != family.kind:
                continue
            samples = labeled if existing is None else (*existing.samples, *labeled)
            merged[family.name] = replace(existing or family, samples=samples)
    return list(merged.values())
