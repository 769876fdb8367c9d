"""The figures of all gateways of this application, asked for by one of them on Ray Serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve as ray_serve

from serve.telemetry.aggregate import Snapshot
from serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Prometheus gives a scrape 10 s by default.
_TIMEOUT_S = 3.0
_SNAPSHOT_METHOD = "snapshot_metrics"

NamedSnapshot = tuple[str, Snapshot]


def snapshot_own_metrics(metrics: Metrics) -> NamedSnapshot:
    """This gateway's name and its figures: what the deployment's `snapshot_metrics` answers."""
    return str(ray_serve.get_replica_context().replica_id.unique_id), metrics.snapshot()


class GatewayMetricsGatherer:
    """Asks every gateway, this one too, through the handle of their own deployment.

    Args:
        metrics: of this gateway; the answer when the others cannot be asked.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._handle: Any = None

    async def __call__(self) -> Mapping[str, Snapshot]:
        """The figures by gateway.

        A gateway that does not answer is left out. Its series are missing then, which no `rate`
        takes for a restart; they go on where they were once it answers again.
        """
        name, own = snapshot_own_metrics(self._metrics)
        answers: list[NamedSnapshot | BaseException] = []
        try:
            answers = await self._gather()
        # Whatever Ray has against it, this gateway's own figures are still worth answering.
        except Exception as error:
            logger.warning("the other gateways' figures are missing: %s", type(error).__name__)
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
