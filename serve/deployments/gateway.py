"""The gateway deployment: the HTTP application on Ray Serve, with tokenizers but no weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve

from serve.api.app import create_app, drain
from serve.api.middleware.access import AdminWithoutKey, KeyRing
from serve.config.reconfigure import apply_user_config
from serve.config.settings import Settings
from serve.deployments.cluster import warn_without_limits, warn_without_token
from serve.scoring.service import ScoringService
from serve.telemetry.logging import configure_logging
from serve.telemetry.metrics import Metrics, Snapshot
from serve.worker.backends import RayBackend

logger = logging.getLogger(__name__)

# Prometheus allows 10 s for a scrape by default.
_TIMEOUT_S = 3.0
_SNAPSHOT_METHOD = "snapshot_metrics"

NamedSnapshot = tuple[str, Snapshot]


@dataclass(frozen=True, slots=True)
class GatewayKeys:
    """The API keys of a gateway as digests, sent between processes; see `KeyRing.from_digests`."""

    keys: Sequence[str]  # keys that may score
    listed_keys: Sequence[str]  # those of `keys` that come from settings and not from a file
    admin_keys: Sequence[str]  # keys that may control models
    listed_admin_keys: Sequence[str]  # those of `admin_keys` that do not come from a file
    admin_without_key: AdminWithoutKey  # who may control models without a key


@ray_serve.ingress()
class Gateway:
    """Validates, tokenizes and queues requests, and answers them.

    `control` is the handle of `serve.deployments.control.ModelControl`; scorers are by alias.
    """

    def __init__(
        self, settings: Settings, scorers: Mapping[str, Any], keys: GatewayKeys, control: Any
    ) -> None:
        self._initial_settings = settings
        self._keys = keys
        configure_logging(settings.log_level, settings.log_format)
        warn_without_token()
        warn_without_limits()
        backends = (
            RayBackend(model.alias, scorers[model.alias], control) for model in settings.models
        )
        self._service = ScoringService(list(zip(settings.models, backends, strict=True)), settings)
        has_others = settings.num_gateways > 1
        self._app = create_app(
            self._service,
            settings,
            KeyRing.from_digests(keys.keys),
            KeyRing.from_digests(keys.admin_keys),
            admin_without_key=keys.admin_without_key,
            echo_request_id=False,
            gather=GatewayMetricsGatherer(self._service.metrics) if has_others else None,
        )

    async def drain(self) -> None:
        """Stop accepting conversations, and return once no scoring request is in flight."""
        await drain(self._app)

    def check_health(self) -> None:
        """Return if the gateway is healthy; called by Serve, which replaces it otherwise."""
        self._service.check_health()

    async def snapshot_metrics(self) -> NamedSnapshot:
        """Return this gateway's metrics; called by the gateway that answers `/metrics`."""
        return snapshot_own_metrics(self._service.metrics)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply `user_config` of a Serve config; omitted settings have the values of the start.

        The files of API keys are read again every time.
        """
        settings = apply_user_config(self._initial_settings, user_config)
        configure_logging(settings.log_level, settings.log_format)
        self._app.state.settings = self._service.settings = settings
        state, listed = self._app.state, self._keys
        digests = KeyRing.from_settings(settings).digests
        state.keys = KeyRing.from_digests((*listed.listed_keys, *digests))
        admin_digests = KeyRing.from_settings(settings, admin=True).digests
        state.admin_keys = KeyRing.from_digests((*listed.listed_admin_keys, *admin_digests))
        state.admin_without_key = "none" if admin_digests else listed.admin_without_key
        logger.info("settings changed: %s", ", ".join(sorted(user_config)) or "none")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; called by Serve in the replica, after the constructor."""
        return self._app


def get_deployment_name(alias: str) -> str:
    """Return the name of a model's deployment; distinct aliases have distinct names."""
    return "Scorer-" + re.sub(r"[^\w.-]", lambda match: f"_{ord(match[0]):x}_", alias)


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
