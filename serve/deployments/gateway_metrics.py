"""Gathers the metrics of all gateways of this application on Ray Serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve as ray_serve

from serve.telemetry.metrics import Metrics, Snapshot

logger = logging.getLogger(__name__)

# Prometheus allows 10 s for a scrape by default.
_TIMEOUT_S = 3.0
_SNAPSHOT_METHOD = "snapshot_metrics"

NamedSnapshot = tuple[str, Snapshot]


def snapshot_own_metrics(metrics: Metrics) -> NamedSnapshot:
    """Return this gateway's name and a snapshot of its metrics."""
    return str(ray_serve.get_replica_context().replica_id.unique_id), metrics.snapshot()


class GatewayMetricsGatherer:
    """Asks every gateway, this one included, for its metrics, through the deployment's handle."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._handle: Any = None

    async def __call__(self) -> Mapping[str, Snapshot]:
        """Return the metrics by gateway.

        A gateway that does not answer is left out. Its series are then missing, which `rate` does
        not mistake for a restart, and continue where they were once it answers again.
        """
        name, own = snapshot_own_metrics(self._metrics)
        answers: list[NamedSnapshot | BaseException] = []
        try:
            answers = await self._gather()
        # Whatever the error of Ray, the metrics of this gateway are still worth returning.
        except Exception as error:
            logger.warning(
                "the metrics of the other gateways are missing: %s", type(error).__name__
            )
        others = (answer for answer in answers if not isinstance(answer, BaseException))
        return dict(others) | {name: own}

    async def _gather(self) -> list[NamedSnapshot | BaseException]:
        if self._handle is None:
            context = ray_serve.get_replica_context()
            self._handle = ray_serve.get_deployment_handle(context.deployment, context.app_name)
        response = self._handle.broadcast(_SNAPSHOT_METHOD)
        answers: list[NamedSnapshot | BaseException] = await response.results_async(
            timeout_s=_TIMEOUT_S, return_exceptions=True
        )
        return answers
