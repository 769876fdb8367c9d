"""Pages of HTML that need nothing else: no script, no font, no picture from anywhere.

Plots are drawn by matplotlib and stand in the page as SVG whose colours are the page's own
variables, so that both follow the reader's choice of light or dark. Nothing is known here of jobs
or of benchmarks.
"""

from __future__ import annotations

import importlib.util

from serve.errors import MissingExtraError


def require_matplotlib() -> None:
    """Raise before anything is scored if the report could not be drawn at the end.

    Raises:
        MissingExtraError: the extra `reports` is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "the report's plots need matplotlib, which is not installed: "
            "pip install 'skyreward[reports]'"
        )
