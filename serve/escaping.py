"""Text from elsewhere, such as names and messages, made safe to print on a terminal.

Control characters could move the cursor, set the window's title or reverse the reading direction.
They are shown as escapes. Everything that the command line prints goes through this module.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

# C0 without tab and line feed, DEL, C1, bidi controls, separators of lines, halves of surrogate
# pairs (which standard output cannot encode).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_text(text: str) -> str:
    r"""The text with unsafe characters as `\x1b` or `\u202e`; tabs and line feeds stay."""
    return _UNSAFE.sub(lambda found: _escape_character(found[0]), text)


def escape_line(text: str) -> str:
    """The same, with further lines indented, so that none can pass for a message of ours."""
    return escape_text(text).replace("\n", "\n  ")


def dump_json(value: Any, **options: Any) -> str:
    """JSON for people and programs: readable in any script, unsafe characters as its own escapes.

    Args:
        value: JSON data.
        options: of `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    # Such characters stand inside of strings alone.
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class EscapingFormatter(logging.Formatter):
    """A record as text without unsafe characters, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """All lines of the record."""
        return escape_line(super().format(record))


def _escape_character(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
