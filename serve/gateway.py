"""The gateway deployment: the HTTP application on Ray Serve. Owns tokenizers, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve

from serve.backends import RayBackend
from serve.http import create_app
from serve.keys import KeyRing
from serve.service import ScoringService
from serve.settings import Settings
from serve.telemetry import configure_logging


@ray_serve.ingress()
class Gateway:
    """Validates, tokenizes, splits, gathers, answers.

    Args:
        settings: `Settings` as plain data, already resolved by the process that built the app.
        scorers: handle of the scorer deployment of each model, by alias.
        key_digests: of the API keys, see `KeyRing.of_digests`.
    """

    def __init__(
        self, settings: dict[str, Any], scorers: Mapping[str, Any], key_digests: Sequence[str]
    ) -> None:
        self._settings = Settings.of(**settings)
        self._keys = KeyRing.of_digests(key_digests)
        configure_logging(self._settings.log_level)
        self._service = ScoringService(
            [
                (model, RayBackend(model.alias, scorers[model.alias]))
                for model in self._settings.models
            ]
        )

    async def drain(self) -> None:
        """Accept nothing new, and return once everything accepted is answered."""
        await self._service.drain()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the constructor."""
        return create_app(self._service, self._settings, self._keys, echo_request_id=False)
