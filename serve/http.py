"""The FastAPI application around a `ScoringService`. The same with Ray and without."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_core import RewardError
from serve import __version__, guard, openapi
from serve.keys import KeyRing
from serve.problems import (
    BadRequestError,
    error_body,
    error_object,
    problem_of,
    problem_response,
    quoted,
)
from serve.routes import native, status
from serve.service import ScoringService
from serve.settings import Settings
from serve.telemetry import accept_request_id, request_id

logger = logging.getLogger(__name__)

_ID = "skyreward.request_id"
_MAX_FINDINGS = 5

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
) -> FastAPI:
    """The HTTP application.

    Args:
        service: what scores; its models are watched while the application runs.
        settings: shown by `/info`.
        keys: one of which every request must bring; default: those of the settings.
        echo_request_id: False where the server in front echoes `X-Request-Id` itself, as Ray
            Serve's proxy does.

    Raises:
        ModelLoadError: the keys of the settings cannot be read or used.
    """
    keys = KeyRing.of(settings) if keys is None else keys

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watcher = asyncio.create_task(service.watch())
        yield
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher

    # FastAPI's own /docs loads its scripts from another host; a machine with GPUs often sees none.
    app = FastAPIOffline(
        title="skyreward",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.settings = settings
    app.state.keys = keys
    app.state.echo_request_id = echo_request_id
    app.include_router(native.router)
    app.include_router(status.router)
    app.add_exception_handler(RewardError, _on_reward_error)
    app.add_exception_handler(RequestValidationError, _on_malformed_body)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    guard.install(app, settings, keys)
    app.add_middleware(_RequestIds, echo=echo_request_id)
    openapi.install(app, with_keys=bool(keys))
    return app


async def _on_reward_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RewardError)
    return problem_response(error)


async def _on_malformed_body(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    findings = [_finding(item) for item in found[:_MAX_FINDINGS]]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in findings)
    if len(found) > _MAX_FINDINGS:
        message += f"; and {len(found) - _MAX_FINDINGS} more like these"
    problem = BadRequestError(f"{message}. The body's shape is documented at /docs")
    return problem_response(problem, findings[0][0] or None)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {quoted(request.url.path)}: {error.detail}"
    if error.status_code in (404, 405):
        message += ". The routes are listed at /docs"
    body = error_object(message, "invalid_request_error", f"http_{error.status_code}")
    return JSONResponse(body, error.status_code, error.headers)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    # The border of the web layer. Starlette logs the traceback when it raises this again, and
    # calls this outside of every middleware: the id has to be put on by hand.
    identifier = request.scope[_ID]
    token = request_id.set(identifier)
    logger.error("a request failed: %s", type(error).__name__)
    request_id.reset(token)
    headers = {"X-Request-Id": identifier} if request.app.state.echo_request_id else None
    problem = RewardError("the service failed on this request; its log has the details")
    return JSONResponse(error_body(problem), problem_of(problem).status, headers)


def _finding(item: Mapping[str, Any]) -> tuple[str, str]:
    """Where in the body, and what is wrong there."""
    place = quoted(".".join(str(part) for part in item["loc"][1:]))
    if item["type"] == "extra_forbidden":
        return place, "there is no such field"
    return place, str(item["msg"])


class _RequestIds:
    """Takes or makes `X-Request-Id`, keeps it for the log, echoes it."""

    def __init__(self, app: ASGIApp, echo: bool) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id")
        identifier = accept_request_id(sent.decode("latin-1") if sent else None)
        token = request_id.set(identifier)
        scope[_ID] = identifier

        async def send_with_id(message: Message) -> None:
            if self._echo and message["type"] == "http.response.start":
                header = (b"x-request-id", identifier.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            request_id.reset(token)
