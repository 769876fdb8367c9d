"""Sleep, wake and reload as vLLM and SGLang have them, for trainers that know those servers.

Without `model` in the address, sleep and wake are for all models. A model sleeps as a whole: `tags`
are accepted, and a part that is named wakes the whole model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from serve.api.compat.common import CompatBody, ModelInQuery, resolve_model_name
from serve.api.error_responses import build_compat_error_docs
from serve.api.routing import OptionalBodyRoute, ServiceDep
from serve.errors import BadRequestError, ReloadRefusedError
from serve.scoring.served_model import ServedModel
from serve.scoring.service import ScoringService
from serve.telemetry.logging import current_request

TRANSFER_PATHS = (
    "/init_weight_transfer_engine",
    "/init_weights_update_group",
    "/start_weight_update",
    "/update_weights",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weights_from_tensor",
)
"""Routes of vLLM and SGLang that take weights from another process; refused with the reason."""

Tags = Annotated[
    list[Literal["weights", "kv_cache", "cuda_graph", "scheduling"]], Field(fail_fast=True)
]

router = APIRouter(responses=build_compat_error_docs(), route_class=OptionalBodyRoute)


class MemoryBody(CompatBody):
    """SGLang's body of the routes that release and resume memory."""

    tags: Tags | None = None
    model: str | None = None


class UpdateWeightsBody(CompatBody):
    """SGLang's body of `/update_weights_from_disk`; other fields are ignored."""

    model_path: str = Field(min_length=1, description="a folder, or ORG/NAME@REVISION on the hub")
    load_format: str | None = None
    weight_version: str | None = Field(default=None, min_length=1, max_length=200)
    model: str | None = None


@router.post("/sleep", tags=["vLLM"], summary="Put models to sleep as vLLM does")
async def sleep(
    service: ServiceDep,
    level: Annotated[int, Query(ge=1, le=2)] = 1,
    mode: Annotated[
        Literal["abort", "wait", "keep"],
        Query(description="`keep` needs the setting `when_asleep: wait`"),
    ] = "abort",
    model: ModelInQuery = None,
) -> Response:
    """Free the device's memory: level 1 keeps the weights in the host's memory, 2 drops them.

    Batches on the device are finished. What requests get that are queued is the setting
    `when_asleep`, not `mode`.
    """
    models = _select(service, model)
    if mode == "keep" and any(m.settings.when_asleep != "wait" for m in models):
        raise BadRequestError(
            "mode=keep lets queued requests wait, and the service's setting `when_asleep` refuses "
            "them; set it to `wait`, or leave `mode` out"
        )
    await asyncio.gather(*(m.sleep(level) for m in models))
    return Response()


@router.post("/wake_up", tags=["vLLM"], summary="Wake models as vLLM does")
async def wake_up(
    service: ServiceDep, tags: Annotated[Tags | None, Query()] = None, model: ModelInQuery = None
) -> Response:
    """Put the models on their devices again."""
    await asyncio.gather(*(m.wake() for m in _select(service, model)))
    return Response()


@router.get("/is_sleeping", tags=["vLLM"], summary="Asleep, as vLLM says it")
async def is_sleeping(service: ServiceDep, model: ModelInQuery = None) -> dict[str, bool]:
    """Return whether the model sleeps; without `model`, whether all models do."""
    return {"is_sleeping": all(m.sleep_level > 0 for m in _select(service, model))}


@router.post(
    "/release_memory_occupation", tags=["SGLang"], summary="Put models to sleep as SGLang does"
)
async def release_memory_occupation(
    service: ServiceDep, body: MemoryBody | None = None, model: ModelInQuery = None
) -> JSONResponse:
    """Free the device's memory; the weights wait in the host's memory (level 1)."""
    models = _select(service, model or (body.model if body else None))
    await asyncio.gather(*(m.sleep(1) for m in models))
    return JSONResponse(None)


@router.post("/resume_memory_occupation", tags=["SGLang"], summary="Wake models as SGLang does")
async def resume_memory_occupation(
    service: ServiceDep, body: MemoryBody | None = None, model: ModelInQuery = None
) -> JSONResponse:
    """Put the models on their devices again."""
    models = _select(service, model or (body.model if body else None))
    await asyncio.gather(*(m.wake() for m in models))
    return JSONResponse(None)


@router.post(
    "/update_weights_from_disk", tags=["SGLang"], summary="Replace a model's weights as SGLang does"
)
async def update_weights_from_disk(
    body: UpdateWeightsBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """Put the weights of a folder into all replicas, as `/v1/models/{alias}/reload` does.

    `flush_cache` and `abort_all_requests` are not needed: cached rewards belong to their weights,
    and requests go on.
    """
    if body.load_format not in (None, "auto", "safetensors"):
        raise BadRequestError(
            f"load_format is {body.load_format!r:.100}, and weights are read from safetensors "
            "files; leave it out"
        )
    served = service.resolve_model(resolve_model_name(service, model, body.model))
    current_request().model = served.settings.alias
    try:
        info = await served.reload(body.model_path, body.weight_version)
    except ReloadRefusedError as error:
        current_request().code = error.code
        return JSONResponse({"success": False, "message": error.detail}, 400)
    message = f"the weights are those of version {info.fingerprint.version}"
    return JSONResponse({"success": True, "message": message, "num_paused_requests": 0})


@router.get("/get_weight_version", tags=["SGLang"], summary="Version of the weights, as SGLang")
async def get_weight_version(service: ServiceDep, model: ModelInQuery = None) -> dict[str, str]:
    """Return the version that the last reload named; `default` for the weights of the start."""
    info = service.resolve_model(model).require_info()
    return {"weight_version": info.fingerprint.version or "default"}


async def refuse_transfer() -> None:
    """Refuse weights that come over the network or from another process's memory."""
    raise BadRequestError(
        "weights are taken from checkpoints only: write one to a folder that the service can read, "
        "and send its path to /update_weights_from_disk"
    )


for _path in TRANSFER_PATHS:
    router.post(_path, include_in_schema=False)(refuse_transfer)


def _select(service: ScoringService, name: str | None) -> Sequence[ServedModel]:
    """Return the model of a name, or all models."""
    if name is None:
        return list(service.models.values())
    return [service.resolve_model(resolve_model_name(service, name))]
