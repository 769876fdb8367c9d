"""What the routes share: the class of those with a body, and what they get from the application.

`JsonRoute` is FastAPI's route class with strict parsing of JSON.

A body is counted before it is parsed: a few bytes of JSON can become a value of fifty bytes, and
parsing 32 MB of empty lists takes 900 MB and blocks every other request for seconds. Numbers are
not counted: clients send token ids by the million.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from rm_core.strict_json import describe_error, parse_strict
from serve.api.error_responses import ERROR_FORMAT_KEY, ErrorFormat, truncate_for_message
from serve.api.middleware.access import KeyRing
from serve.config.settings import Settings
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService

# Larger bodies are parsed on a thread: they would block the event loop for milliseconds.
_THREAD_FROM_BYTES = 256 * 2**10
# Larger bodies are parsed so that other threads can run meanwhile, which takes up to three times as
# long.
_YIELD_GIL_FROM_BYTES = 4 * 2**20
_parse_lock = threading.Lock()

# Generous: a message is one object with four strings, or three objects if its content has parts.
_PER_CONVERSATION = 20
_PER_MESSAGE = 100
_STRINGS_EACH = 4
_NAMES_EACH = 20
_SPARE_NAMES = 10_000

# Every wire format has fewer than thirty fields; clients may send more, which are ignored.
MAX_FIELDS = 100
_TOKEN_IDS = ("input", "input_ids")  # fields that may be one long list of token ids

_BLOCK_BYTES = 2**20
_QUOTE = ord('"')
_HINT = (
    "split it into several requests, or raise the service's settings `max_conversations` and "
    "`max_messages`"
)
_LEAVE_OUT = "leave out fields that are not documented at /docs"


def _from_state(name: str) -> Any:
    # A coroutine, although it awaits nothing: FastAPI calls plain functions on a thread, at 0.7 ms
    # each.
    async def get(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(get)


ServiceDep = Annotated[ScoringService, _from_state("service")]
SettingsDep = Annotated[Settings, _from_state("settings")]
KeysDep = Annotated[KeyRing, _from_state("keys")]
AdminKeysDep = Annotated[KeyRing, _from_state("admin_keys")]


class JsonRoute(APIRoute):
    """A route with a JSON body, parsed by `parse_json`, which raises its own errors."""

    allows_empty_body = False

    def error_format_for(self, body: Any) -> ErrorFormat | None:
        """Return the format of errors, if the body determines it; None if the path does."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, preceded by the parsing of the body."""
        handle = super().get_route_handler()

        async def parse_and_handle(request: Request) -> Response:
            # Not in `json`: FastAPI would replace every error raised there by a generic one.
            request = _JsonRequest(request.scope, request.receive)
            if not self.allows_empty_body or await request.body():
                await request.parse()
            if error_format := self.error_format_for(await request.json()):
                request.scope[ERROR_FORMAT_KEY] = error_format
            return await handle(request)

        return parse_and_handle


class OptionalBodyRoute(JsonRoute):
    """A route whose body may be empty, which counts as null."""

    allows_empty_body = True


class _JsonRequest(Request):
    """A request whose body is read by `parse_json`."""

    _value: Any = None

    async def parse(self) -> None:
        body, settings = await self.body(), self.app.state.settings
        if len(body) < _THREAD_FROM_BYTES:
            self._value = parse_json(body)
            check_fields(self._value, settings)
        else:
            self._value = await asyncio.to_thread(_parse_large, body, settings)

    async def json(self) -> Any:
        return self._value


def parse_json(body: bytes, *, yield_gil: bool = False) -> Any:
    """Parse a JSON body; the error says what is wrong, and where."""
    if not body.strip():
        raise BadRequestError(
            "the body is empty; send a JSON object. Its schema is documented at /docs"
        )
    try:
        return parse_strict(body.removeprefix(b"\xef\xbb\xbf").decode(), yield_gil=yield_gil)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the body is not UTF-8: {error.reason} at byte {error.start}; encode it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = truncate_for_message(describe_error(error))
        raise BadRequestError(f"the body is not valid JSON: {reason}") from None


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


def check_values(body: bytes, settings: Settings) -> None:
    """Reject a body with more values than any request needs; syntax is left to the parser."""
    counts = _count_bytes_outside_strings(body)
    num_objects, num_strings = int(counts[ord("{")]), int(counts[_QUOTE])
    num_containers = num_objects + int(counts[ord("[")])
    limit = _PER_CONVERSATION * settings.max_conversations + _PER_MESSAGE * settings.max_messages
    _check(num_containers, limit, "lists and objects")
    _check(num_strings, _STRINGS_EACH * limit, "strings")
    num_names, limit = int(counts[ord(":")]), _NAMES_EACH * num_objects + _SPARE_NAMES
    if num_names > limit:
        raise BadRequestError(
            f"the objects of the body have {num_names:,} fields and the limit is {limit:,} "
            f"({_NAMES_EACH} per object, plus {_SPARE_NAMES:,}); {_LEAVE_OUT}"
        )


def check_fields(value: Any, settings: Settings) -> None:
    """Reject a body with more fields, or longer lists in its fields, than any request needs."""
    if not isinstance(value, dict):
        return
    if len(value) > MAX_FIELDS:
        raise BadRequestError(
            f"the body has {len(value):,} fields and the limit is {MAX_FIELDS}; {_LEAVE_OUT}"
        )
    limit = max(settings.max_conversations, settings.max_messages)
    for name, items in value.items():
        if isinstance(items, list) and len(items) > limit and name not in _TOKEN_IDS:
            _check(len(items), limit, f"items in `{truncate_for_message(name)}`")


def _count_bytes_outside_strings(body: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Count each byte value outside of strings; of the two quotes of a string, one is counted."""
    # Without escaped characters, every quote begins or ends a string.
    unescaped = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    counts, is_inside = np.zeros(256, np.int64), np.uint8(0)
    # In blocks: numpy needs ten bytes of memory for each byte of the block.
    for start in range(0, len(unescaped), _BLOCK_BYTES):
        block = unescaped[start : start + _BLOCK_BYTES]
        # The sum overflows, which keeps odd numbers odd.
        num_quotes = np.cumsum(block == _QUOTE, dtype=np.uint8) + is_inside
        counts += np.bincount(block[num_quotes & 1 == 0], minlength=256)
        is_inside = num_quotes[-1]
    return counts


def _check(number: int, limit: int, noun: str) -> None:
    if number > limit:
        raise BadRequestError(f"the body has {number:,} {noun} and the limit is {limit:,}; {_HINT}")
