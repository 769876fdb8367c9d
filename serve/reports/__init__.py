"""Self-contained HTML pages, without scripts, fonts or images from elsewhere.

matplotlib draws the plots. They are inlined as SVG with the page's CSS variables as colors, so
that they follow the reader's light or dark mode. The package is independent of jobs and
benchmarks.
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
