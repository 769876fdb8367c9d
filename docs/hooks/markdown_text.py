"""Pieces of Markdown that survive any text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def code(text: object) -> str:
    """Inline code, in a table too."""
    return f"`{text}`"


def cell(text: str) -> str:
    """Prose for one cell of a table; what is in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([|*_<\[])", r"\\\1", parts[i])
    return "".join(parts)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
