"""Parses the JSON of requests strictly: ambiguous and dangerous values are rejected.

Stricter than `json.loads`, which accepts duplicate keys (the last one wins), NaN and Infinity,
1e999 as infinity and UTF-16, and values nested deeper than recursive code can handle.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from typing import Any, NoReturn

from serve.api.error_responses import truncate_for_message
from serve.errors import BadRequestError

MAX_DEPTH = 100
"""Maximum nesting of lists and objects; Python's recursion limit is about 1,000 calls in total."""


def parse_json(body: bytes, *, yield_gil: bool = False) -> Any:
    """Parse a JSON body.

    Args:
        body: JSON in UTF-8.
        yield_gil: whether to let other threads run meanwhile; slower, for large bodies.

    Raises:
        BadRequestError: the body is not valid; the message says what is wrong, and where.
    """
    if not body.strip():
        raise BadRequestError(
            "the body is empty; send a JSON object. Its schema is documented at /docs"
        )
    try:
        decoder = _YIELDING_DECODER if yield_gil else _DECODER
        value = decoder.decode(body.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the body is not UTF-8: {error.reason} at byte {error.start}; encode it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise BadRequestError(
            f"the body is not valid JSON: {error.msg} at character {error.pos}"
        ) from None
    except RecursionError:
        raise BadRequestError(_TOO_DEEP) from None
    except ValueError:  # only Python's limit on the digits of an integer raises this
        raise BadRequestError("the body has an integer of more than 4,300 digits") from None
    # With fewer brackets than the limit, a value cannot be too deep: most bodies skip the check.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise BadRequestError(_TOO_DEEP)
    return value


_TOO_DEEP = f"the body nests lists and objects more than {MAX_DEPTH} levels deep; flatten it"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicate = counts.most_common(1)[0][0]
        raise BadRequestError(
            f"an object has the key {truncate_for_message(duplicate)!r} twice, which is ambiguous; "
            "remove one of them"
        )
    return value


def _reject_constant(name: str) -> NoReturn:
    raise BadRequestError(
        f"the body is not valid JSON: it has {name}, and JSON allows only finite numbers"
    )


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadRequestError(f"the number {truncate_for_message(text)} is too large for a double")
    return number


def _is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _int(text: str) -> int:
    return int(text)


_decoder = functools.partial(
    json.JSONDecoder, object_pairs_hook=_object, parse_constant=_reject_constant, parse_float=_float
)
_DECODER = _decoder()
# Python switches threads only while it runs Python code. The C decoder runs none for a body of
# numbers, and would block all other threads; the hook `_int` is Python code.
_YIELDING_DECODER = _decoder(parse_int=_int)
