"""How many values a body may hold, counted before it is parsed.

A few bytes can be a value of fifty: parsing 32 MB of empty lists takes 900 MB, and holds up every
other request for seconds. Numbers are not counted: token ids are sent by the million.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serve.api.error_responses import truncate_for_message
from serve.config.settings import Settings
from serve.errors import BadRequestError

# Generous: a message is one object of four strings, and content in parts makes three of it.
_PER_CONVERSATION = 20
_PER_MESSAGE = 100
_STRINGS_EACH = 4
_NAMES_EACH = 20
_SPARE_NAMES = 10_000

# Every wire format has fewer than thirty; clients may send some that are ignored.
MAX_FIELDS = 100
_TOKEN_IDS = ("input", "input_ids")  # which may be one list of very many

_BLOCK_BYTES = 2**20
_QUOTE = ord('"')
_HINT = (
    "split it into several requests, or raise the service's settings `max_conversations` and "
    "`max_messages`"
)
_LEAVE_OUT = "leave out what is not documented at /docs"


def check_values(body: bytes, settings: Settings) -> None:
    """Refuse a body with more values than any request needs.

    Args:
        body: JSON; what is wrong with it is for the parser to say.
        settings: with `max_conversations` and `max_messages`, from which the bounds follow.

    Raises:
        BadRequestError: too many lists and objects, strings, or fields of objects.
    """
    counts = _count_bytes_outside_strings(body)
    num_objects, num_strings = int(counts[ord("{")]), int(counts[_QUOTE])
    num_containers = num_objects + int(counts[ord("[")])
    limit = _PER_CONVERSATION * settings.max_conversations + _PER_MESSAGE * settings.max_messages
    _check(num_containers, limit, "lists and objects")
    _check(num_strings, _STRINGS_EACH * limit, "strings")
    num_names, limit = int(counts[ord(":")]), _NAMES_EACH * num_objects + _SPARE_NAMES
    if num_names > limit:
        raise BadRequestError(
            f"the objects of the body have {num_names:,} fields and the limit is {limit:,}, "
            f"{_NAMES_EACH} an object and {_SPARE_NAMES:,} more; {_LEAVE_OUT}"
        )


def check_fields(value: Any, settings: Settings) -> None:
    """Refuse a body whose fields alone are more than any request has.

    Args:
        value: that the body holds.
        settings: with the limits of conversations and messages.

    Raises:
        BadRequestError: too many fields, or too many items in one of them.
    """
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
    """How often each byte stands outside of strings; a quote counts once for its string."""
    # What is left are the quotes that begin and end strings.
    bare = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    counts, inside = np.zeros(256, np.int64), np.uint8(0)
    for start in range(
        0, len(bare), _BLOCK_BYTES
    ):  # numpy takes ten bytes for each that it looks at
        part = bare[start : start + _BLOCK_BYTES]
        # It overflows, which leaves odd numbers odd.
        quotes = np.cumsum(part == _QUOTE, dtype=np.uint8) + inside
        counts += np.bincount(part[quotes & 1 == 0], minlength=256)
        inside = quotes[-1]
    return counts


def _check(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise BadRequestError(f"the body has {number:,} {what} and the limit is {limit:,}; {_HINT}")
