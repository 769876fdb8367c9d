"""Merging the metrics of several gateways."""

from __future__ import annotations

import pickle

from prometheus_client.metrics_core import Metric
from prometheus_text import eventful, read, series

from serve.telemetry.logging import RequestContext
from serve.telemetry.metrics import Metrics, Snapshot, merge_snapshots

REQUESTS = "skyreward_requests_total"


def counted(num_requests: int) -> Snapshot:
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.record_request(RequestContext("r", route="/v1/score", status=200, total_s=0.1))
    return metrics.snapshot()


def test_merge_keeps_series_of_each_gateway() -> None:
    found = read(merge_snapshots({"a": counted(3), "b": counted(4)}))
    assert found[series(REQUESTS, route="/v1/score", status="200", gateway="a")] == 3
    assert found[series(REQUESTS, route="/v1/score", status="200", gateway="b")] == 4
    duration = "skyreward_request_duration_seconds_bucket"
    for gateway, count in (("a", 3), ("b", 4)):
        labels = {"route": "/v1/score", "gateway": gateway}
        assert found[series(duration, le="+Inf", **labels)] == count
        assert found[series(duration, le="0.05", **labels)] == 0


def test_lost_gateway_does_not_change_other_series() -> None:
    before = read(merge_snapshots({"a": counted(3), "b": counted(4)}))
    after = read(merge_snapshots({"a": counted(3)}))
    assert after == {name: value for name, value in before.items() if ("gateway", "a") in name[1]}


def test_merge_keeps_all_samples_in_one_family_each() -> None:
    snapshot = eventful().snapshot()
    merged = merge_snapshots({"a": snapshot, "b": snapshot})
    assert [family.name for family in merged] == [family.name for family in snapshot]
    for one, two in zip(snapshot, merged, strict=True):
        assert (one.type, one.documentation) == (two.type, two.documentation)
        assert len(two.samples) == 2 * len(one.samples)
    assert len(read(merged)) == 2 * len(read(snapshot))


def test_snapshots_of_two_versions_are_merged() -> None:
    def metric(name: str, kind: str = "gauge", text: str = "Old.") -> Metric:
        metric = Metric(name, text, kind)
        metric.add_sample(name, {}, 1.0)
        return metric

    old = Snapshot([metric("both"), metric("old"), metric("changed")])
    new = Snapshot([metric("both", text="New."), metric("new"), metric("changed", kind="unknown")])
    merged = {f.name: f for f in merge_snapshots({"a": old, "b": new})}
    assert list(merged) == ["both", "old", "changed", "new"]
    assert merged["both"].documentation == "Old."
    assert [sample.labels for sample in merged["both"].samples] == [
        {"gateway": "a"},
        {"gateway": "b"},
    ]
    # The text format does not allow a family of two kinds.
    assert [sample.labels for sample in merged["changed"].samples] == [{"gateway": "a"}]


def test_merge_of_nothing_is_empty() -> None:
    assert merge_snapshots({}) == []
    assert merge_snapshots({"a": Snapshot()}) == []


def test_snapshot_survives_the_way_between_processes() -> None:
    snapshot = eventful().snapshot()
    received = pickle.loads(pickle.dumps(snapshot))
    assert read(received) == read(snapshot)
    assert not [name for name, _ in read(received) if name.endswith("_created")]
