"""Escapes untrusted text, such as names and messages, for printing on a terminal.

Control characters could move the cursor, set the window's title or reverse the reading direction.
They are shown as escapes. All output of the command line goes through this module.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

# C0 except tab and line feed, DEL, C1, bidi controls, line separators, and halves of surrogate
# pairs (which standard output cannot encode).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_text(text: str) -> str:
    r"""Replace unsafe characters with `\x1b` or `\u202e`; tabs and line feeds stay."""
    return _UNSAFE.sub(lambda match: _escape_character(match[0]), text)


def escape_line(text: str) -> str:
    """Escape text and indent its further lines, so that none can pass for our own message."""
    return escape_text(text).replace("\n", "\n  ")


def dump_json(value: Any, **options: Any) -> str:
    """Dump JSON that is readable in any script, with unsafe characters as JSON escapes."""
    text = json.dumps(value, ensure_ascii=False, **options)
    # Unsafe characters occur only inside strings.
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class EscapingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without unsafe characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; see `logging.Formatter`."""
        return escape_line(super().format(record))


def _escape_character(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
