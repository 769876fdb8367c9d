"""The figures of several gateways in one answer."""

from __future__ import annotations

from prometheus_text import eventful, read, series

from serve.telemetry.aggregate import MetricFamily, Sample, merge_snapshots
from serve.telemetry.context import RequestContext
from serve.telemetry.metrics import Metrics

REQUESTS = "skyreward_requests_total"


def counted(num_requests: int) -> list[MetricFamily]:
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.record_request(RequestContext("r"), "/v1/score", 200, 0.1)
    return metrics.snapshot()


def test_every_gateway_keeps_its_own_series() -> None:
    found = read(merge_snapshots({"a": counted(3), "b": counted(4)}))
    assert found[series(REQUESTS, route="/v1/score", status="200", gateway="a")] == 3
    assert found[series(REQUESTS, route="/v1/score", status="200", gateway="b")] == 4
    duration = "skyreward_request_duration_seconds_bucket"
    for gateway, count in (("a", 3), ("b", 4)):
        labels = {"route": "/v1/score", "gateway": gateway}
        assert found[series(duration, le="+Inf", **labels)] == count
        assert found[series(duration, le="0.05", **labels)] == 0


def test_a_gateway_that_dies_moves_no_other_series() -> None:
    before = read(merge_snapshots({"a": counted(3), "b": counted(4)}))
    after = read(merge_snapshots({"a": counted(3)}))
    assert after == {name: value for name, value in before.items() if ("gateway", "a") in name[1]}


def test_nothing_is_lost_and_no_family_comes_twice() -> None:
    snapshot = eventful().snapshot()
    merged = merge_snapshots({"a": snapshot, "b": snapshot})
    assert [family.name for family in merged] == [family.name for family in snapshot]
    for one, two in zip(snapshot, merged, strict=True):
        assert (one.kind, one.documentation) == (two.kind, two.documentation)
        assert len(two.samples) == 2 * len(one.samples)
    assert len(read(merged)) == 2 * len(read(snapshot))


def test_gateways_of_two_versions_answer_together() -> None:
    def family(name: str, kind: str = "gauge", text: str = "Old.") -> MetricFamily:
        return MetricFamily(name, kind, text, (Sample(name, (), 1.0),))

    old = [family("both"), family("old"), family("changed")]
    new = [family("both", text="New."), family("new"), family("changed", kind="unknown")]
    merged = {f.name: f for f in merge_snapshots({"a": old, "b": new})}
    assert list(merged) == ["both", "old", "changed", "new"]
    assert merged["both"].documentation == "Old."
    assert [figure.labels for figure in merged["both"].samples] == [
        (("gateway", "a"),),
        (("gateway", "b"),),
    ]
    # A family of two kinds would be no valid text.
    assert [figure.labels for figure in merged["changed"].samples] == [(("gateway", "a"),)]


def test_of_none_there_is_nothing() -> None:
    assert merge_snapshots({}) == []
    assert merge_snapshots({"a": []}) == []
