"""Colours of plots, by name.

matplotlib knows no variables, so plots are drawn in stand-ins, which are replaced by the variables
of `page.css` when a drawing becomes part of a page.
"""

from __future__ import annotations

from collections.abc import Mapping

TEXT = "#000001"
SOFT = "#000002"
LINE = "#000003"
BACK = "#000004"
SERIES = tuple(f"#0000{number:02x}" for number in range(0x11, 0x19))
"""One for each of several things in a plot; with more things they start again."""

VARIABLES: Mapping[str, str] = {
    TEXT: "var(--text)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    BACK: "var(--card)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
}


def series_colour(number: int) -> str:
    """The stand-in of a series, by its place from 0."""
    return SERIES[number % len(SERIES)]


def series_variable(number: int) -> str:
    """As `series_colour`, but what the page's own style calls it."""
    return VARIABLES[series_colour(number)]
