"""Merge the metrics of several gateways into one response. Pure, no Ray.

Every gateway counts its own requests. The series of all gateways are exported side by side,
distinguished by the label `gateway`, and are not summed: a sum drops when a gateway dies.
Prometheus treats every drop of a counter as a restart from zero, and would report everything that
the other gateways ever counted as an increase of that moment. `sum by (...) (rate(...))` sums them
in the right order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import Metric

GATEWAY_LABEL = "gateway"


class Snapshot(list[Metric]):
    """Metrics at one moment. Is sent between processes, and encoded as a registry would be."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as the encoders of prometheus_client require of a registry."""
        return iter(self)


def merge_snapshots(snapshots: Mapping[str, Snapshot]) -> Snapshot:
    """Return one metric per name, with the series of all gateways.

    Args:
        snapshots: the snapshot of each gateway, by gateway id. Where gateways of two versions
            disagree during an update, the first gateway that has the metric decides its type and
            its HELP text; series of another type are dropped.
    """
    merged: dict[str, Metric] = {}
    for gateway, snapshot in snapshots.items():
        for metric in snapshot:
            empty = Metric(metric.name, metric.documentation, metric.type)
            target = merged.setdefault(metric.name, empty)
            if target.type == metric.type:
                target.samples += [
                    sample._replace(labels={**sample.labels, GATEWAY_LABEL: gateway})
                    for sample in metric.samples
                ]
    return Snapshot(merged.values())
