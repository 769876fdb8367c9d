"""Colors of plots.

matplotlib does not support CSS variables. Plots therefore use placeholder colors, which are
replaced by the variables of `page.css` when a plot is inlined into a page.
"""

from __future__ import annotations

from collections.abc import Mapping

TEXT = "#000001"
SOFT = "#000002"
LINE = "#000003"
BACK = "#000004"
SERIES = tuple(f"#0000{number:02x}" for number in range(0x11, 0x19))
"""Colors of the series of a plot; further series start again with the first color."""

VARIABLES: Mapping[str, str] = {
    TEXT: "var(--text)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    BACK: "var(--card)",
    **{color: f"var(--s{number})" for number, color in enumerate(SERIES)},
}


def series_colour(number: int) -> str:
    """Return the placeholder color of a series, by its index from 0."""
    return SERIES[number % len(SERIES)]


def series_variable(number: int) -> str:
    """Return the CSS variable of a series' color, by its index from 0."""
    return VARIABLES[series_colour(number)]
