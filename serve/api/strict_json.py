"""JSON as callers send it, read strictly: what is ambiguous or would break something is refused.

Stricter than `json.loads`, which takes the last of two equal keys, NaN and Infinity, an infinite
1e999 and UTF-16, and whose values may be nested deeper than the code that reads them can go.
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
"""Most lists and objects inside each other; Python's own limit is about 1,000 calls in all."""


def parse_json(body: bytes, *, yield_gil: bool = False) -> Any:
    """The value that a body holds.

    Args:
        body: JSON in UTF-8.
        give_way: let other threads run meanwhile, for a body that takes long.

    Raises:
        BadRequestError: with what is wrong with it, and where.
    """
    if not body.strip():
        raise BadRequestError("the body is empty; send a JSON object. Its shape is at /docs")
    try:
        decoder = _YIELDING_DECODER if yield_gil else _DECODER
        value = decoder.decode(body.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the body is no UTF-8: {error.reason} at byte {error.start}; encode it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise BadRequestError(
            f"the body is no JSON: {error.msg} at character {error.pos}"
        ) from None
    except RecursionError:
        raise BadRequestError(_TOO_DEEP) from None
    except ValueError:  # the only other one: of Python's limit against slow conversions
        raise BadRequestError("the body has an integer of more than 4,300 digits") from None
    # Where so few are opened, they cannot be deep: most bodies need not be walked through.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise BadRequestError(_TOO_DEEP)
    return value


_TOO_DEEP = f"the body has more than {MAX_DEPTH} lists and objects inside each other; flatten it"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise BadRequestError(
            f"an object has the key {truncate_for_message(twice)!r} twice, and which one counts cannot be "
            "known; leave one out"
        )
    return found


def _reject_constant(name: str) -> NoReturn:
    raise BadRequestError(f"the body is no JSON: it has {name}, and JSON knows finite numbers only")


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
# Python changes threads in its own code alone: without any, a body of numbers keeps all waiting.
_YIELDING_DECODER = _decoder(parse_int=_int)
