"""The FastAPI application around a `ScoringService`, used both on Ray Serve and in one process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route

from rm_core import RewardError
from serve import __version__
from serve.api import openapi
from serve.api.compat import lifecycle as compat_lifecycle
from serve.api.compat import (
    llamafactory,
    nemo_gym,
    openai_chat,
    openrlhf,
    sglang,
    shared_paths,
    slime,
    tei,
    vllm,
)
from serve.api.compat.common import FORM_TAG_PREFIX
from serve.api.compat.errors import ERROR_FORMATS
from serve.api.error_responses import ErrorDetails, build_error_response, truncate_for_message
from serve.api.middleware import stack
from serve.api.middleware.access import AdminWithoutKey, KeyRing
from serve.api.middleware.request_log import NOSNIFF, REQUEST_CONTEXT_KEY
from serve.api.routes import lifecycle, pages, scoring, status
from serve.config.settings import Settings
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.telemetry.logging import CURRENT_REQUEST, current_request

if TYPE_CHECKING:
    from serve.api.middleware.tracing import OtlpTracer

logger = logging.getLogger(__name__)

_ROUTERS = (
    scoring.router,
    shared_paths.router,
    status.router,
    lifecycle.router,
    compat_lifecycle.router,
    vllm.router,
    sglang.router,
    openrlhf.router,
    tei.router,
    llamafactory.router,
    slime.router,
    nemo_gym.router,
    nemo_gym.probes,
    openai_chat.router,
    pages.router,
)
_MAX_FIELD_ERRORS = 5

DESCRIPTION = """Scores conversations with Skywork-Reward models.

Rewards are raw float32 logits, without a sigmoid. A conversation that cannot be scored gets an
`error` in its result, and the other conversations are scored; only a malformed body gets a 4xx.
Conversations are truncated only if `truncation` allows it, and the result reports it."""


def create_app(
    service: ScoringService,
    settings: Settings,
    keys: KeyRing | None = None,
    admin_keys: KeyRing | None = None,
    *,
    admin_without_key: AdminWithoutKey | None = None,
    echo_request_id: bool = True,
    gather: status.GatherSnapshots | None = None,
) -> FastAPI:
    """Create the FastAPI application.

    Args:
        service: scores the conversations; its models are watched while the application runs.
        settings: settings of the service; `/info` shows them.
        keys: API keys, one of which every request must send; default: the keys of the settings.
        admin_keys: API keys that may control models; default: those of the settings.
        admin_without_key: who may control models without such a key; default: clients of a
            loopback address without admin keys, else no one.
        echo_request_id: False if the server in front echoes `X-Request-Id` itself, as Ray Serve's
            proxy does.
        gather: collects the metrics of all gateways; None if there is only this process.

    Raises:
        ModelLoadError: the keys of the settings cannot be read or used.
    """
    keys = KeyRing.from_settings(settings) if keys is None else keys
    admin_keys = KeyRing.from_settings(settings, admin=True) if admin_keys is None else admin_keys
    tracer = _create_tracer(settings.otlp_endpoint)

    # FastAPIOffline serves the scripts of the documentation pages; FastAPI's pages load the scripts
    # from another host.
    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        title="skyreward",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=functools.partial(_lifespan, service, tracer),
        # FastAPI's telemetry would join a global provider, and sends request bodies along.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    app.state.settings = settings
    app.state.keys = keys
    app.state.admin_keys = admin_keys
    app.state.admin_without_key = admin_without_key or ("none" if admin_keys else "loopback")
    app.state.echo_request_id = echo_request_id
    app.state.gather = gather
    app.state.error_formats = ERROR_FORMATS
    for router in _ROUTERS:
        app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    stack.install(
        app,
        service.metrics,
        check_capacity=service.check_any_capacity,
        echo_request_id=echo_request_id,
        route_templates=_collect_route_templates(app),
        tracer=tracer,
    )
    openapi.install(app, with_keys=bool(keys))
    return app


async def drain(app: FastAPI) -> None:
    """Stop accepting conversations, and return once no scoring request is in flight.

    A request whose body is still arriving gets 503 when it has arrived, or 408 by its limits.
    """
    app.state.service.stop_accepting()
    await app.state.in_flight.wait_until_idle()


@contextlib.asynccontextmanager
async def _lifespan(
    service: ScoringService, tracer: OtlpTracer | None, _: FastAPI
) -> AsyncIterator[None]:
    watcher = asyncio.create_task(service.watch())
    yield
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher
    if tracer is not None:
        await asyncio.to_thread(tracer.close)


def _create_tracer(endpoint: str | None) -> OtlpTracer | None:
    if endpoint is None:
        return None
    # Imported here, so that the exporter is loaded only if tracing is enabled.
    from serve.api.middleware.tracing import OtlpTracer

    return OtlpTracer(endpoint)


def _collect_route_templates(app: FastAPI) -> set[str]:
    """Return the template of every route; a mount is represented by `/*`."""
    routes = [*app.routes, *(route for router in _ROUTERS for route in router.routes)]
    return {
        f"{route.path}/*" if isinstance(route, Mount) else route.path.replace(":path}", "}")
        for route in routes
        if isinstance(route, Mount | Route)
    }


async def _on_reward_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RewardError)
    current_request().code = error.code
    return build_error_response(error, request.scope)


async def _on_malformed_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    field_errors = [_describe_field_error(item) for item in errors[:_MAX_FIELD_ERRORS]]
    message = "; ".join(f"{path}: {text}" if path else text for path, text in field_errors)
    if len(errors) > _MAX_FIELD_ERRORS:
        message += f"; and {len(errors) - _MAX_FIELD_ERRORS} more errors"
    bad_request = BadRequestError(f"{message}. The body's schema is documented at /docs")
    current_request().code = bad_request.code
    details = ErrorDetails.from_error(bad_request, field_errors[0][0] or None, field_errors)
    return build_error_response(details, request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {truncate_for_message(request.url.path)}: {error.detail}"
    if error.status_code in (404, 405):
        message += ". The routes are listed at /docs"
    code = current_request().code = f"http_{error.status_code}"
    details = ErrorDetails(error.status_code, "invalid_request_error", code, message)
    response = build_error_response(details, request.scope)
    response.headers.update(error.headers or {})
    return response


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    # The boundary of the web layer. Starlette re-raises the error, which logs the traceback, and
    # calls this handler outside of all middleware: the request id has to be added here.
    context = request.scope[REQUEST_CONTEXT_KEY]
    token = CURRENT_REQUEST.set(context)
    logger.error("request failed: %s", type(error).__name__)
    CURRENT_REQUEST.reset(token)
    server_error = RewardError("the service failed on this request; its log has the details")
    response = build_error_response(server_error, request.scope)
    response.headers[NOSNIFF[0].decode()] = NOSNIFF[1].decode()
    if request.app.state.echo_request_id:
        response.headers["X-Request-Id"] = context.id
    return response


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RewardError: _on_reward_error,
    RequestValidationError: _on_malformed_body,
    HTTPException: _on_http_error,
    Exception: _on_unexpected_error,
}


def _describe_field_error(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the path of a wrong field in the body, and what is wrong with it."""
    names = [str(name) for name in item["loc"][1:]]
    path = truncate_for_message(
        ".".join(name for name in names if not name.startswith(FORM_TAG_PREFIX))
    )
    if item["type"] == "extra_forbidden":
        return path, "unknown field"
    return path, str(item["msg"]).removeprefix("Value error, ")
