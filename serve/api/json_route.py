"""The route class of every route with a body: FastAPI's, with strict parsing of JSON."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve.api.error_responses import ERROR_FORMAT_KEY, ErrorFormat
from serve.api.json_limits import check_fields, check_values
from serve.api.strict_json import parse_json
from serve.config.settings import Settings

# Larger bodies are parsed on a thread: they would block the event loop for milliseconds.
_THREAD_FROM_BYTES = 256 * 2**10
# Larger bodies are parsed so that other threads can run meanwhile, which takes up to three times as
# long.
_YIELD_GIL_FROM_BYTES = 4 * 2**20
_parse_lock = threading.Lock()


class _JsonRequest(Request):
    """A request whose body is read by `parse_json`."""

    _value: Any

    async def parse(self) -> None:
        body, settings = await self.body(), self.app.state.settings
        if len(body) < _THREAD_FROM_BYTES:
            self._value = parse_json(body)
            check_fields(self._value, settings)
        else:
            self._value = await asyncio.to_thread(_parse_large, body, settings)

    async def json(self) -> Any:
        return self._value

    @property
    def value(self) -> Any:
        return self._value


def _parse_large(body: bytes, settings: Settings) -> Any:
    check_values(body, settings)
    # Python's garbage collector would traverse all values parsed so far again and again, for most
    # of the time and while every other thread waits, and none of them is garbage. The lock lets
    # the collector run between two bodies.
    with _parse_lock:
        gc.disable()
        try:
            value = parse_json(body, yield_gil=len(body) >= _YIELD_GIL_FROM_BYTES)
        finally:
            gc.enable()
    check_fields(value, settings)
    return value


class JsonRoute(APIRoute):
    """A route with a JSON body, parsed by `parse_json`, which raises its own errors."""

    def error_format_for(self, body: Any) -> ErrorFormat | None:
        """Return the format of errors, if the body determines it; None if the path does."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, preceded by the parsing of the body."""
        handle = super().get_route_handler()

        async def parse_and_handle(request: Request) -> Response:
            # Not in `json`: FastAPI would replace every error raised there by a generic one.
            request = _JsonRequest(request.scope, request.receive)
            await request.parse()
            if error_format := self.error_format_for(request.value):
                request.scope[ERROR_FORMAT_KEY] = error_format
            return await handle(request)

        return parse_and_handle
