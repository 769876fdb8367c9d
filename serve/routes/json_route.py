"""The class of every route that takes a body: FastAPI's, with our reading of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve.problems import SHAPE, Shape
from serve.routes.json_body import parse_json

# A larger body is read on a thread: it would hold up every other request for milliseconds.
_THREAD_FROM_BYTES = 256 * 2**10


class _JsonRequest(Request):
    """A request whose body is read by `parse_json`."""

    _value: Any

    async def parse(self) -> None:
        body = await self.body()
        if len(body) < _THREAD_FROM_BYTES:
            self._value = parse_json(body)
        else:
            self._value = await asyncio.to_thread(parse_json, body)

    async def json(self) -> Any:
        return self._value

    @property
    def value(self) -> Any:
        return self._value


class JsonRoute(APIRoute):
    """A route with a JSON body; errors in it are those of `parse_json`."""

    def shape_for(self, body: Any) -> Shape | None:
        """The shape of errors, where it goes by the body; None where it goes by the path."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given the parsed body."""
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            # Here, and not in `json`: FastAPI would make one unclear error of all that it raises.
            request = _JsonRequest(request.scope, request.receive)
            await request.parse()
            if shape := self.shape_for(request.value):
                request.scope[SHAPE] = shape
            return await handle(request)

        return parsed
