"""The console for tables: shows text as it is, without Rich's markup and without escape codes."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from serve.escaping import escape_text

_WIDTH = 160


class Console(RichConsole):
    """A console on standard output or standard error for text from anywhere.

    Args:
        stderr: whether to print on standard error.
        width: in columns, where standard output is no terminal: a pipe has no width of its own,
            and Rich would wrap at 80.
    """

    def __init__(self, *, stderr: bool = False, width: int = _WIDTH) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            width=None if stream.isatty() else width,
            # `skyreward[flash]` would lose its end, and `[/x]` would raise an error.
            markup=False,
            emoji=False,
            highlight=False,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """See Rich; every string of a table or a line comes through here."""
        return super().render_str(escape_text(text), **options)
