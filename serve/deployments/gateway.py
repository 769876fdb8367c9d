"""The gateway deployment: the HTTP application on Ray Serve. Owns tokenizers, no weights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve

from serve.api.app import create_app
from serve.api.middleware.api_keys import KeyRing
from serve.api.middleware.ray_proxy import InFlightMiddleware, RestoreHeadersMiddleware
from serve.config.reconfigure import apply_user_config
from serve.config.settings import Settings
from serve.deployments.cluster import warn_without_limits, warn_without_token
from serve.deployments.gateway_metrics import (
    GatewayMetricsGatherer,
    NamedSnapshot,
    snapshot_own_metrics,
)
from serve.scoring.service import ScoringService
from serve.telemetry.logging import configure_logging
from serve.worker.backends import RayBackend

logger = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 10.0


@ray_serve.ingress()
class Gateway:
    """Validates, tokenizes, splits, gathers, answers.

    Args:
        settings: already resolved by the process that built the app.
        scorers: handle of the scorer deployment of each model, by alias.
        keys: digests of the API keys, see `KeyRing.from_digests`.
        listed_keys: those of them that no file has.
    """

    def __init__(
        self,
        settings: Settings,
        scorers: Mapping[str, Any],
        keys: Sequence[str],
        listed_keys: Sequence[str],
    ) -> None:
        self._initial_settings = settings
        self._listed_keys = listed_keys
        configure_logging(settings.log_level, settings.log_format)
        warn_without_token()
        warn_without_limits()
        backends = (RayBackend(model.alias, scorers[model.alias]) for model in settings.models)
        self._service = ScoringService(list(zip(settings.models, backends, strict=True)), settings)
        several = settings.num_gateways > 1
        self._app = create_app(
            self._service,
            settings,
            KeyRing.from_digests(keys),
            echo_request_id=False,
            gather=GatewayMetricsGatherer(self._service.metrics) if several else None,
        )
        self._app.add_middleware(RestoreHeadersMiddleware)
        self._idle = asyncio.Event()
        self._app.add_middleware(InFlightMiddleware, idle=self._idle)

    async def drain(self) -> None:
        """Accept nothing new, and return once everything accepted is answered."""
        await self._service.drain()
        # Of others, such as a client that still sends a body, nothing was accepted.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _FLUSH_TIMEOUT_S)

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica for which this raises."""
        self._service.check_health()

    async def snapshot_metrics(self) -> NamedSnapshot:
        """This gateway's figures; asked for by whichever gateway is asked for `/metrics`."""
        return snapshot_own_metrics(self._service.metrics)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over `user_config` of a Serve config; what it leaves out is as it was at the start.

        A file of keys is read again every time.

        Raises:
            ModelLoadError: a bad value, or a name that cannot be changed while this runs.
        """
        settings = apply_user_config(self._initial_settings, user_config)
        configure_logging(settings.log_level, settings.log_format)
        self._app.state.settings = self._service.settings = settings
        read = KeyRing.from_settings(settings).digests
        self._app.state.keys = KeyRing.from_digests((*self._listed_keys, *read))
        logger.info("settings changed: %s", ", ".join(sorted(user_config)) or "none")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the constructor."""
        return self._app


def get_deployment_name(alias: str) -> str:
    """Name of the deployment that serves a model, unique where aliases are."""
    return "Scorer-" + re.sub(r"[^\w.-]", lambda match: f"_{ord(match[0]):x}_", alias)
