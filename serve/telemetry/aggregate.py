"""The figures of several gateways in one answer. Plain data and pure functions; no Ray here.

Every gateway counts what went through it. Their figures stand side by side, told apart by the label
`gateway`, and are not added up: a sum falls when a gateway dies, Prometheus takes every fall of a
counter for a restart from zero, and would show all that the others ever counted as counted just
now. `sum by (...) (rate(...))` adds them up in the right order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prometheus_client.metrics_core import Metric

GATEWAY_LABEL = "gateway"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number: its series' name and labels, and its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric at one moment, as data that can go from process to process.

    Attributes:
        name: without the `_total` of counters.
        kind: counter, gauge, histogram or info.
        documentation: the HELP text.
        figures: its series.
    """

    name: str
    kind: str
    documentation: str
    samples: tuple[Sample, ...]


Snapshot = Sequence[MetricFamily]


class FamilyCollector:
    """Families as a collector of prometheus_client, for its writers of the text formats."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks of every collector."""
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for figure in family.samples:
                metric.add_sample(figure.name, dict(figure.labels), figure.value)
            yield metric


def build_snapshot(metrics: Iterable[Metric]) -> list[MetricFamily]:
    """The families of a registry, without the times when their series were made."""
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
    """One family of each name, with the series of all gateways.

    Args:
        snapshots: by gateway; in two versions of the service, during an update, the kind and the
            text of a family are the first one's that has it.
    """
    merged: dict[str, MetricFamily] = {}
    for gateway, snapshot in snapshots.items():
        for family in snapshot:
            own = tuple(
                replace(figure, labels=(*figure.labels, (GATEWAY_LABEL, gateway)))
                for figure in family.samples
            )
            before = merged.get(family.name)
            if before is not None and before.kind != family.kind:
                continue
            samples = own if before is None else (*before.samples, *own)
            merged[family.name] = replace(before or family, samples=samples)
    return list(merged.values())
