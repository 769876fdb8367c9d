"""The class of every route that takes a body: FastAPI's, with our reading of JSON."""

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

# A larger body is read on a thread: it would hold up every other request for milliseconds.
_THREAD_FROM_BYTES = 256 * 2**10
# From here on it must let others run; it takes up to three times as long for that.
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
    # Python's garbage collector would look through all that was parsed so far, again and again:
    # for most of the time, with every other thread waiting, and there is no garbage among it. One
    # body at a time, so that it gets its turn in between.
    with _parse_lock:
        gc.disable()
        try:
            value = parse_json(body, yield_gil=len(body) >= _YIELD_GIL_FROM_BYTES)
        finally:
            gc.enable()
    check_fields(value, settings)
    return value


class JsonRoute(APIRoute):
    """A route with a JSON body; errors in it are those of `parse_json`."""

    def error_format_for(self, body: Any) -> ErrorFormat | None:
        """The shape of errors, where it goes by the body; None where it goes by the path."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given the parsed body."""
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            # Here, and not in `json`: FastAPI would make one unclear error of all that it raises.
            request = _JsonRequest(request.scope, request.receive)
            await request.parse()
            if shape := self.error_format_for(request.value):
                request.scope[ERROR_FORMAT_KEY] = shape
            return await handle(request)

        return parsed
