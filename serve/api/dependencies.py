"""Dependencies of the routes, from the state of their application."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from serve.api.middleware.api_keys import KeyRing
from serve.config.settings import Settings
from serve.scoring.service import ScoringService


def _from_state(name: str) -> Any:
    # A coroutine, although it awaits nothing: FastAPI calls plain functions on a thread, at 0.7 ms
    # each.
    async def get(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(get)


ServiceDep = Annotated[ScoringService, _from_state("service")]
SettingsDep = Annotated[Settings, _from_state("settings")]
KeysDep = Annotated[KeyRing, _from_state("keys")]
