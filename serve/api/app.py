"""The FastAPI application around a `ScoringService`. The same with Ray and without."""

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
from serve.api.compat import (
    llamafactory,
    openai_chat,
    openrlhf,
    rerank,
    sglang,
    shared_paths,
    slime,
    tei,
    vllm,
)
from serve.api.compat.common import FORM_TAG_PREFIX
from serve.api.compat.errors import ERROR_FORMATS
from serve.api.error_responses import (
    ErrorDetails,
    build_error_details,
    build_error_response,
    build_response_from_details,
    truncate_for_message,
)
from serve.api.middleware import stack
from serve.api.middleware.api_keys import KeyRing
from serve.api.middleware.request_log import NOSNIFF, REQUEST_CONTEXT_KEY, RequestLogMiddleware
from serve.api.routes import docs, playground, scoring, status
from serve.api.routes import metrics as figures
from serve.config.settings import Settings
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.telemetry.context import bind_request, current_request, unbind_request

if TYPE_CHECKING:
    from serve.api.middleware.tracing import OtlpTracer

logger = logging.getLogger(__name__)

_ROUTERS = (
    scoring.router,
    shared_paths.native_router,
    status.router,
    figures.router,
    shared_paths.router,
    shared_paths.rerank_router,
    vllm.router,
    sglang.router,
    openrlhf.router,
    tei.router,
    llamafactory.router,
    slime.router,
    openai_chat.router,
    rerank.router,
    playground.router,
    docs.router,
)
_MAX_FIELD_ERRORS = 5

DESCRIPTION = """Scores conversations with Skywork-Reward models.

Rewards are raw float32 logits, never squashed. A conversation that cannot be scored gets an
`error` in its own place and the others are scored; only a malformed body is answered with 4xx.
Nothing is cut unless `truncation` asks for it, and then the result says so."""


def create_app(
    service: ScoringService,
    settings: Settings,
    keys: KeyRing | None = None,
    *,
    echo_request_id: bool = True,
    gather: figures.GatherSnapshots | None = None,
) -> FastAPI:
    """The HTTP application.

    Args:
        service: what scores; its models are watched while the application runs.
        settings: shown by `/info`.
        keys: one of which every request must bring; default: those of the settings.
        echo_request_id: False where the server in front echoes `X-Request-Id` itself, as Ray
            Serve's proxy does.
        gather: asks all gateways for their figures, where there are several.

    Raises:
        ModelLoadError: the keys of the settings cannot be read or used.
    """
    keys = KeyRing.from_settings(settings) if keys is None else keys
    tracer = _tracer(settings.otlp_endpoint)

    # It has the scripts of `serve.api.routes.docs`; FastAPI's own come from another host.
    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        title="skyreward",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=functools.partial(_lifespan, service, tracer),
        # FastAPI's own would join a global provider, and sends what callers posted along.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    app.state.settings = settings
    app.state.keys = keys
    app.state.echo_request_id = echo_request_id
    app.state.gather = gather
    app.state.error_formats = ERROR_FORMATS
    for router in _ROUTERS:
        app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    stack.install(app, settings, service.check_any_capacity)
    # The last one is outermost: whatever another one refuses must be seen as well.
    app.add_middleware(
        RequestLogMiddleware,
        metrics=service.metrics,
        echo_request_id=echo_request_id,
        route_templates=_collect_route_templates(app),
        tracer=tracer,
    )
    openapi.install(app, with_keys=bool(keys))
    return app


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


def _tracer(endpoint: str | None) -> OtlpTracer | None:
    if endpoint is None:
        return None
    # Here, so that the exporter is not even imported where nobody wants it.
    from serve.api.middleware.tracing import OtlpTracer

    return OtlpTracer(endpoint)


def _collect_route_templates(app: FastAPI) -> set[str]:
    """Of every route; those below a mount are told by `/*`."""
    routes = [*app.routes, *(route for router in _ROUTERS for route in router.routes)]
    return {
        f"{route.path}/*" if isinstance(route, Mount) else route.path
        for route in routes
        if isinstance(route, Mount | Route)
    }


async def _on_reward_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RewardError)
    current_request().code = error.code
    return build_error_response(error, request.scope)


async def _on_malformed_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    findings = [_describe_field_error(item) for item in found[:_MAX_FIELD_ERRORS]]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in findings)
    if len(found) > _MAX_FIELD_ERRORS:
        message += f"; and {len(found) - _MAX_FIELD_ERRORS} more like these"
    problem = BadRequestError(f"{message}. The body's shape is documented at /docs")
    current_request().code = problem.code
    return build_response_from_details(
        build_error_details(problem, findings[0][0] or None, findings), request.scope
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {truncate_for_message(request.url.path)}: {error.detail}"
    if error.status_code in (404, 405):
        message += ". The routes are listed at /docs"
    code = current_request().code = f"http_{error.status_code}"
    failure = ErrorDetails(error.status_code, "invalid_request_error", code, message)
    response = build_response_from_details(failure, request.scope)
    response.headers.update(error.headers or {})
    return response


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    # The border of the web layer. Starlette logs the traceback when it raises this again, and
    # calls this outside of every middleware: the id has to be put on by hand.
    record = request.scope[REQUEST_CONTEXT_KEY]
    token = bind_request(record)
    logger.error("a request failed: %s", type(error).__name__)
    unbind_request(token)
    problem = RewardError("the service failed on this request; its log has the details")
    response = build_error_response(problem, request.scope)
    response.headers[NOSNIFF[0].decode()] = NOSNIFF[1].decode()
    if request.app.state.echo_request_id:
        response.headers["X-Request-Id"] = record.id
    return response


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RewardError: _on_reward_error,
    RequestValidationError: _on_malformed_body,
    HTTPException: _on_http_error,
    Exception: _on_unexpected_error,
}


def _describe_field_error(item: Mapping[str, Any]) -> tuple[str, str]:
    """Where in the body, and what is wrong there."""
    parts = [str(part) for part in item["loc"][1:]]
    place = truncate_for_message(
        ".".join(part for part in parts if not part.startswith(FORM_TAG_PREFIX))
    )
    if item["type"] == "extra_forbidden":
        return place, "there is no such field"
    return place, str(item["msg"]).removeprefix("Value error, ")
