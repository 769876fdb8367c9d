"""The life of a model that shares its device with a trainer: sleep, wake, reload.

`serve.api.middleware.access` decides who may call these routes; they have no deadline.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.api import error_responses
from serve.api.middleware.access import LIFECYCLE_PATHS
from serve.api.routing import OptionalBodyRoute, ServiceDep
from serve.api.schemas import LifecycleResponse, ReloadRequest, SleepRequest, WakeRequest
from serve.scoring.served_model import ServedModel
from serve.telemetry.logging import current_request

router = APIRouter(
    tags=["lifecycle"],
    responses=error_responses.build_error_docs(lifecycle=True),
    route_class=OptionalBodyRoute,
)

# The alias of a hub checkpoint has a slash.
_PATHS = {name: path.replace("{alias}", "{alias:path}") for name, path in LIFECYCLE_PATHS.items()}


@router.post(_PATHS["sleep"], response_model=LifecycleResponse, summary="Put a model to sleep")
async def sleep(alias: str, service: ServiceDep, body: SleepRequest | None = None) -> JSONResponse:
    """Free the memory of the model's device, on all replicas; returns once it is free.

    Batches on the device are finished. Requests get 503 with the code `model_asleep`, or wait
    (setting `when_asleep`).
    """
    model = service.resolve_model(alias)
    level = (body or SleepRequest()).level
    seconds = await _measure(model, model.sleep(level))
    return _build_response(model, seconds, freed_bytes=model.freed_bytes)


@router.post(_PATHS["wake"], response_model=LifecycleResponse, summary="Wake a model")
async def wake(alias: str, service: ServiceDep, body: WakeRequest | None = None) -> JSONResponse:
    """Put the model on its device again; rewards are those of before, to the bit."""
    model = service.resolve_model(alias)
    return _build_response(model, await _measure(model, model.wake()))


@router.post(
    _PATHS["reload"], response_model=LifecycleResponse, summary="Replace a model's weights"
)
async def reload(alias: str, body: ReloadRequest, service: ServiceDep) -> JSONResponse:
    """Put new weights of the same architecture and tokenizer into all replicas.

    No request fails meanwhile, and each is answered by one version, which its fingerprint names.
    Weights that cannot be used get 409 with the code `reload_refused`; the old ones serve on.
    """
    model = service.resolve_model(alias)
    seconds = await _measure(model, model.reload(body.source, body.version))
    return _build_response(model, seconds)


async def _measure(model: ServedModel, action: Awaitable[object]) -> float:
    current_request().model = model.settings.alias
    started = time.perf_counter()
    await action
    return time.perf_counter() - started


def _build_response(model: ServedModel, seconds: float, **fields: int | None) -> JSONResponse:
    info = model.model_info
    return JSONResponse(
        {
            "model": model.settings.alias,
            "state": model.state,
            "sleep_level": model.sleep_level,
            "seconds": seconds,
            **fields,
            "fingerprint": None if info is None else info.fingerprint.as_dict(),
        }
    )
