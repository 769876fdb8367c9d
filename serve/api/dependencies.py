"""Dependencies of the routes, from the state of their application.

They are coroutines, although they await nothing: FastAPI calls plain functions on a thread, at
0.7 ms each.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from serve.api.middleware.api_keys import KeyRing
from serve.config.settings import Settings
from serve.scoring.service import ScoringService


async def _get_service(request: Request) -> ScoringService:
    service = request.app.state.service
    assert isinstance(service, ScoringService)
    return service


async def _get_settings(request: Request) -> Settings:
    settings = request.app.state.settings
    assert isinstance(settings, Settings)
    return settings


async def _get_keys(request: Request) -> KeyRing:
    keys = request.app.state.keys
    assert isinstance(keys, KeyRing)
    return keys


ServiceDep = Annotated[ScoringService, Depends(_get_service)]
SettingsDep = Annotated[Settings, Depends(_get_settings)]
KeysDep = Annotated[KeyRing, Depends(_get_keys)]
