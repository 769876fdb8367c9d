"""Parses JSON strictly: HTTP bodies, rows of files, and JSON text inside of conversations.

Python's parser keeps the last of two equal keys, accepts NaN and Infinity, turns 1e999 into
infinity, and returns values that are nested too deeply for recursive code and for its own writer.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Maximum nesting of lists and objects; Python's recursion limit is about 1,000 calls in total."""
_MAX_QUOTED = 40


class NotStrictError(ValueError):
    """The text is JSON for Python's parser but not strict JSON."""


def parse_strict(text: str, *, finite: bool = True, yield_gil: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: one JSON value.
        finite: False accepts NaN and infinite numbers, for callers that report them themselves.
        yield_gil: whether to let other threads run meanwhile; slower, for large texts.

    Raises:
        ValueError: the text is not strict JSON; see `describe_error`.
        RecursionError: the value is nested too deeply for Python.
    """
    decoder = _DISTINCT if not finite else _YIELDING if yield_gil else _STRICT
    value = decoder.decode(text)
    require_depth(value, text)
    return value


def require_depth(value: Any, text: str) -> None:
    """Check that a value is not nested too deeply to be written again.

    A value whose text has few brackets, as most, is not walked.

    Raises:
        NotStrictError: the value has more than `MAX_DEPTH` nested lists and objects.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise NotStrictError(_TOO_DEEP)


def describe_error(error: Exception) -> str:
    """Describe why a text could not be parsed; `it` is the text."""
    if isinstance(error, json.JSONDecodeError):
        # Without the line number, which is always 1 for a row and looks like a line of the file.
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, NotStrictError):
        return str(error)
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return "it has an integer of more than 4,300 digits; write it as text"


_TOO_DEEP = f"it has more than {MAX_DEPTH} lists and objects inside each other; flatten it"


def _require_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise NotStrictError(
            f"the key {key[:_MAX_QUOTED]!r} occurs twice in one object; leave one out"
        )
    return record


def reject_constant(name: str) -> NoReturn:
    """Reject NaN and infinity, as `json` passes them."""
    raise NotStrictError(f"it has {name}, and JSON allows only finite numbers; write null or text")


def parse_finite(text: str) -> float:
    """Parse a number of a JSON text that a double can hold."""
    number = float(text)
    if not math.isfinite(number):
        raise NotStrictError(
            f"the number {text[:_MAX_QUOTED]} is too large for a double; write it as text"
        )
    return number


def _parse_integer(text: str) -> int:
    return int(text)


_DISTINCT = json.JSONDecoder(object_pairs_hook=_require_distinct_keys)
_build_strict_decoder = functools.partial(
    json.JSONDecoder,
    object_pairs_hook=_require_distinct_keys,
    parse_constant=reject_constant,
    parse_float=parse_finite,
)
_STRICT = _build_strict_decoder()
# Python switches threads only while it runs Python code. The C decoder runs none for a text of
# numbers, and would block all other threads; the hook `_parse_integer` is Python code.
_YIELDING = _build_strict_decoder(parse_int=_parse_integer)
