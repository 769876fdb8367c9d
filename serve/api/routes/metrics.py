"""`/metrics`: the figures of this process, or of all gateways, in Prometheus' text formats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client.exposition import choose_encoder

from serve.api.dependencies import ServiceDep, SettingsDep
from serve.telemetry.aggregate import Collected, Family, Figure, Snapshot, merge
from serve.telemetry.metrics import PREFIX

# By gateway; asked for at every scrape.
Gather = Callable[[], Awaitable[Mapping[str, Snapshot]]]

router = APIRouter(tags=["status"])


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request, service: ServiceDep, settings: SettingsDep) -> Response:
    """Counters, histograms and gauges; OpenMetrics where `Accept` asks for it."""
    gather: Gather | None = request.app.state.gather
    if gather is None:
        num_answered, families = 1, service.metrics.snapshot()
    else:
        snapshots = await gather()
        num_answered, families = len(snapshots), merge(snapshots)
    families += [
        _gauge("gateways", "Gateways that there should be (num_gateways).", settings.num_gateways),
        _gauge("gateways_up", "Gateways whose metrics are in this response.", num_answered),
    ]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(Collected(families)), headers={"Content-Type": content_type})


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(PREFIX + name, "gauge", text, (Figure(PREFIX + name, (), value),))
