"""Shares in a grid of cells: the higher, the stronger the colour, and each with its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from serve.reports.colours import BACK, series_colour
from serve.reports.svg import SMALL, add_tooltip, render_svg

_ACROSS = 2
_HEIGHT = 190
# So that a number can be read on it in light and dark.
_STRONGEST = 0.6


class Grid(NamedTuple):
    """One grid.

    Attributes:
        title: above it.
        cells: shares of 1, by row.
    """

    title: str
    cells: Sequence[Sequence[float]]


class GridLabels(NamedTuple):
    """What stands beside all grids of a drawing.

    Attributes:
        row: what the rows are.
        rows: their names.
        column: what the columns are.
        columns: their names.
    """

    row_title: str
    row_names: Sequence[str]
    column_title: str
    column_names: Sequence[str]


def render_heat_maps(
    label: str, grids: Sequence[Grid], labels: GridLabels, series: int = 0
) -> Markup:
    """Grids, two beside one another.

    Args:
        label: see `drawn`.
        grids: at least one.
        sides: of all of them.
        series: whose colour they have.
    """
    down = math.ceil(len(grids) / _ACROSS)

    def draw(figure: Figure) -> None:
        places = figure.subplots(down, _ACROSS, squeeze=False).flat
        for place, axes in enumerate(places):
            if place >= len(grids):
                axes.set_axis_off()
                continue
            _draw(axes, grids[place], labels, series)
            if place % _ACROSS:
                axes.set_yticks([])
            else:
                axes.set_ylabel(labels.row_title, fontsize=SMALL)
            if place + _ACROSS >= len(grids):
                axes.set_xlabel(labels.column_title, fontsize=SMALL)

    return render_svg(label, _HEIGHT * down, draw)


def _draw(axes: Axes, grid: Grid, labels: GridLabels, series: int) -> None:
    for row, cells in enumerate(grid.cells):
        for column, share in enumerate(cells):
            # Squared, since most shares are high and their differences count.
            strength = _STRONGEST * min(1.0, max(0.0, share)) ** 2
            cell = Rectangle((column, row), 1, 1, edgecolor=BACK, linewidth=2)
            cell.set_facecolor((series_colour(series), strength))
            add_tooltip(
                cell,
                f"{labels.row_title} {labels.row_names[row]}, {labels.column_title} {labels.column_names[column]}: "
                f"{share:.2%}",
            )
            axes.add_patch(cell)
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.1f}", ha="center", va="center")
    axes.set_xlim(0, len(labels.column_names))
    axes.set_ylim(len(labels.row_names), 0)
    axes.set_xticks(
        [place + 0.5 for place in range(len(labels.column_names))], list(labels.column_names)
    )
    axes.set_yticks([place + 0.5 for place in range(len(labels.row_names))], list(labels.row_names))
    axes.tick_params(axis="x", labelsize=SMALL - 1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(grid.title, fontsize=12)
