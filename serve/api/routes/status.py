"""Status routes: health, readiness, served models, effective settings and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily

from rm_core import Fingerprint
from serve import __version__
from serve.api.error_responses import RETRY_AFTER_S
from serve.api.routing import AdminKeysDep, KeysDep, ServiceDep, SettingsDep
from serve.config.settings import Settings
from serve.scoring.served_model import ServedModel
from serve.scoring.service import ScoringService
from serve.telemetry.metrics import Snapshot, merge_snapshots
from serve.telemetry.model_states import PREFIX

router = APIRouter(tags=["status"])

# Only models whose template uses the date have a template date.
_UNKNOWN_FINGERPRINT = {
    field.name: None for field in fields(Fingerprint) if field.default is MISSING
}
# Returns the snapshot of each gateway, by gateway id; called at every scrape.
GatherSnapshots = Callable[[], Awaitable[Mapping[str, Snapshot]]]


# Some load balancers send HEAD requests; the server omits the body.
@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Alive")
async def health() -> dict[str, str]:
    """Return 200 while the process is alive, independent of the models."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    summary="Ready to score",
    responses={503: {"description": "a model is still loading, or failed to load"}},
)
async def ready(service: ServiceDep) -> JSONResponse:
    """Return 200 if every model is loaded and warmed up, otherwise 503.

    A model that sleeps counts as ready: it scores again once it is woken.
    """
    models = {
        alias: {"state": model.state, "sleep_level": model.sleep_level}
        | ({"message": model.failure} if model.failure else {})
        for alias, model in service.models.items()
    }
    body = {"ready": service.is_ready, "models": models}
    if service.is_ready:
        return JSONResponse(body)
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})


@router.get("/v1/models", summary="Served models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """Return the models as OpenAI's clients expect them, with context length and fingerprint."""
    return {
        "object": "list",
        "data": [_model(alias, model) for alias, model in service.models.items()],
    }


@router.get("/info", summary="Effective settings")
async def info(
    service: ServiceDep, settings: SettingsDep, keys: KeysDep, admin_keys: AdminKeysDep
) -> dict[str, Any]:
    """Return the settings, the resolved `auto` values with reasons, and cache statistics."""
    return _build_tei_info(service, settings) | {
        "service": "skyreward",
        "version": __version__,
        "ready": service.is_ready,
        "settings": _mask_settings(settings)
        | {
            "api_keys": ["**********"] * len(keys),
            "admin_api_keys": ["**********"] * len(admin_keys),
        },
        "models": {
            alias: _model(alias, model) | _info(model) | {"score_cache": _cache(model)}
            for alias, model in service.models.items()
        },
    }


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request, service: ServiceDep, settings: SettingsDep) -> Response:
    """Return counters, histograms and gauges, in OpenMetrics format if `Accept` requests it."""
    gather: GatherSnapshots | None = request.app.state.gather
    if gather is None:
        num_answered, snapshot = 1, service.metrics.snapshot()
    else:
        snapshots = await gather()
        num_answered, snapshot = len(snapshots), merge_snapshots(snapshots)
    snapshot += [
        GaugeMetricFamily(
            f"{PREFIX}gateways",
            "Number of configured gateways (num_gateways).",
            settings.num_gateways,
        ),
        GaugeMetricFamily(
            f"{PREFIX}gateways_up", "Gateways whose metrics are in this response.", num_answered
        ),
    ]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(snapshot), headers={"Content-Type": content_type})


def _mask_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings without secrets: file names without folders, URLs without credentials."""
    masked = settings.model_dump(mode="json")
    for name in ("api_keys_file", "admin_api_keys_file", "tls_cert_file", "tls_key_file"):
        masked[name] = _hide_folder(masked[name])
    for model in masked["models"]:
        model["name"] = _hide_folder(model["name"])
        for name in ("chat_template", "calibration"):
            model[name] = _hide_folder(model[name])
    if settings.otlp_endpoint is not None:
        masked["otlp_endpoint"] = _strip_credentials(settings.otlp_endpoint)
    return masked


def _hide_folder(path: str | None) -> str | None:
    """Return the last component of an absolute path; hub ids and `demo` stay as they are."""
    return Path(path).name if path is not None and Path(path).is_absolute() else path


def _strip_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _build_tei_info(service: ScoringService, settings: Settings) -> dict[str, Any]:
    """Return the fields that clients of text-embeddings-inference read, for the first model."""
    model = next(iter(service.models.values()))
    effective = model.model_info
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "model_id": _hide_folder(model.settings.name),
        "model_sha": effective and effective.revision,
        "model_dtype": effective and effective.dtype,
        "model_type": {"classifier": labels},
        "max_concurrent_requests": settings.max_requests,
        "max_input_length": model.encoder.max_length,
        "max_batch_tokens": effective and effective.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_conversations,
        "auto_truncate": False,
        "tokenization_workers": 1,
    }


def _model(alias: str, model: ServedModel) -> dict[str, Any]:
    effective = model.model_info
    return {
        "id": alias,
        "object": "model",
        "created": model.created_at,
        "owned_by": "skyreward",
        "kind": model.encoder.kind,
        "root": _hide_folder(model.settings.name),
        "max_model_len": model.encoder.max_length,
        "reads_images": model.image_processor is not None,
        **_image_limits(model),
        "state": model.state,
        "sleep_level": model.sleep_level,
        "fingerprint": _UNKNOWN_FINGERPRINT
        if effective is None
        else effective.fingerprint.as_dict(),
    }


def _image_limits(model: ServedModel) -> dict[str, Any]:
    """Return the limits of images, of a model that reads images."""
    processor, settings = model.image_processor, model.settings
    if processor is None:
        return {}
    limits = asdict(processor.limits) | {"max_images": settings.max_images}
    return {
        "image_limits": limits
        | {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
    }


def _info(model: ServedModel) -> dict[str, Any]:
    return {} if model.model_info is None else model.model_info.as_dict()


def _cache(model: ServedModel) -> dict[str, int] | None:
    return None if model.cache is None else asdict(model.cache.stats)
