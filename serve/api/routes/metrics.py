"""`/metrics`: the metrics of this process, or of all gateways, in Prometheus' text formats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client.exposition import choose_encoder

from serve.api.dependencies import ServiceDep, SettingsDep
from serve.telemetry.aggregate import (
    FamilyCollector,
    MetricFamily,
    Sample,
    Snapshot,
    merge_snapshots,
)
from serve.telemetry.metrics import PREFIX

# Returns the snapshot of each gateway, by gateway id; called at every scrape.
GatherSnapshots = Callable[[], Awaitable[Mapping[str, Snapshot]]]

router = APIRouter(tags=["status"])


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request, service: ServiceDep, settings: SettingsDep) -> Response:
    """Return counters, histograms and gauges, in OpenMetrics format if `Accept` requests it."""
    gather: GatherSnapshots | None = request.app.state.gather
    if gather is None:
        num_answered, families = 1, service.metrics.snapshot()
    else:
        snapshots = await gather()
        num_answered, families = len(snapshots), merge_snapshots(snapshots)
    families += [
        _gauge("gateways", "Number of configured gateways (num_gateways).", settings.num_gateways),
        _gauge("gateways_up", "Gateways whose metrics are in this response.", num_answered),
    ]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(FamilyCollector(families)), headers={"Content-Type": content_type})


def _gauge(name: str, text: str, value: float) -> MetricFamily:
    return MetricFamily(PREFIX + name, "gauge", text, (Sample(PREFIX + name, (), value),))
