"""The console for tables: prints text literally, without Rich's markup and escape codes."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from serve.escaping import escape_text

_WIDTH = 160


class Console(RichConsole):
    """A console for text from anywhere. If the stream is not a terminal, it has `width` columns."""

    def __init__(self, *, stderr: bool = False, width: int = _WIDTH) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            width=None if stream.isatty() else width,
            # Markup would drop the end of `skyreward[flash]`, and `[/x]` would raise an error.
            markup=False,
            emoji=False,
            highlight=False,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string and render it; Rich calls this for every string of a table or a line."""
        return super().render_str(escape_text(text), **options)
