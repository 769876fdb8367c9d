"""Heat maps of fractions: the higher the value, the stronger the color; cells show their value."""

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

_NUM_COLUMNS = 2
_HEIGHT = 190
# Keeps the numbers readable in light and dark mode.
_MAX_OPACITY = 0.6


class Grid(NamedTuple):
    """A grid of cells.

    Attributes:
        title: title above the grid.
        cells: fractions, by row.
    """

    title: str
    cells: Sequence[Sequence[float]]


class GridLabels(NamedTuple):
    """Labels of all grids of a plot.

    Attributes:
        row_title: title of the rows.
        row_names: names of the rows.
        column_title: title of the columns.
        column_names: names of the columns.
    """

    row_title: str
    row_names: Sequence[str]
    column_title: str
    column_names: Sequence[str]


def render_heat_maps(
    label: str, grids: Sequence[Grid], labels: GridLabels, series: int = 0
) -> Markup:
    """Render grids in two columns.

    Args:
        label: see `render_svg`.
        grids: at least one grid.
        labels: labels of all grids.
        series: series whose color the cells have.
    """
    num_rows = math.ceil(len(grids) / _NUM_COLUMNS)

    def draw(figure: Figure) -> None:
        subplots = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False).flat
        for index, axes in enumerate(subplots):
            if index >= len(grids):
                axes.set_axis_off()
                continue
            _draw(axes, grids[index], labels, series)
            if index % _NUM_COLUMNS:
                axes.set_yticks([])
            else:
                axes.set_ylabel(labels.row_title, fontsize=SMALL)
            if index + _NUM_COLUMNS >= len(grids):
                axes.set_xlabel(labels.column_title, fontsize=SMALL)

    return render_svg(label, _HEIGHT * num_rows, draw)


def _draw(axes: Axes, grid: Grid, labels: GridLabels, series: int) -> None:
    for row, cells in enumerate(grid.cells):
        for column, value in enumerate(cells):
            # Squared to emphasize differences, since most values are high.
            opacity = _MAX_OPACITY * min(1.0, max(0.0, value)) ** 2
            cell = Rectangle((column, row), 1, 1, edgecolor=BACK, linewidth=2)
            cell.set_facecolor((series_colour(series), opacity))
            add_tooltip(
                cell,
                f"{labels.row_title} {labels.row_names[row]}, "
                f"{labels.column_title} {labels.column_names[column]}: {value:.2%}",
            )
            axes.add_patch(cell)
            axes.text(column + 0.5, row + 0.5, f"{100 * value:.1f}", ha="center", va="center")
    axes.set_xlim(0, len(labels.column_names))
    axes.set_ylim(len(labels.row_names), 0)
    axes.set_xticks(
        [column + 0.5 for column in range(len(labels.column_names))], list(labels.column_names)
    )
    axes.set_yticks([row + 0.5 for row in range(len(labels.row_names))], list(labels.row_names))
    axes.tick_params(axis="x", labelsize=SMALL - 1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(grid.title, fontsize=12)
