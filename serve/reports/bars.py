"""Horizontal bar charts with names above the bars, so that long names fit a narrow page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.reports.colours import SOFT, TEXT, series_colour
from serve.reports.svg import SMALL, WIDTH, add_tooltip, render_svg

# Sizes in pixels: height of a name, of a single bar, of one of several bars, of the gap after a
# row and of the axis; width of the numbers on the right.
_NAME, _ALONE, _BAR, _GAP, _AXIS, _NUMBER = 18, 11, 14, 7, 22, 58
_MAX_NAME_CHARS = 48


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        value: length of the bar, at least 0.
        text: number to the right of the bar.
        interval: confidence interval of the value, clipped to the axis; None if unknown.
        tooltip: text that is shown on hover; may be empty.
    """

    value: float
    text: str
    interval: tuple[float, float] | None = None
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class BarRow:
    """A name and a bar for each series; None for a series without a bar."""

    name: str
    bars: tuple[Bar | None, ...]


def render_bars(label: str, rows: Sequence[BarRow], as_percent: bool = False) -> Markup:
    """Render a bar chart.

    Args:
        label: see `render_svg`.
        rows: at least one row, from top to bottom.
        as_percent: whether the values are fractions, drawn on an axis from 0 to 100%.
    """
    height = sum(_NAME + _get_bar_height(row) * len(row.bars) + _GAP for row in rows)
    height += _AXIS if as_percent else 0
    return render_svg(label, height, lambda figure: _draw(figure, rows, height, as_percent))


def _get_bar_height(row: BarRow) -> int:
    return _ALONE if len(row.bars) == 1 else _BAR


def _draw(figure: Figure, rows: Sequence[BarRow], height: float, as_percent: bool) -> None:
    # Coordinates are pixels, so that a row has the same height in plots of 2 and of 100 rows.
    figure.set_layout_engine("none")
    bottom = _AXIS / height if as_percent else 0.0
    axes: Axes = figure.add_axes((0.0, bottom, 1 - _NUMBER / WIDTH, 1 - bottom))
    longest = max((bar.value for row in rows for bar in row.bars if bar), default=0.0) or 1.0
    end = 1.0 if as_percent else longest
    top = 0.0
    for row in rows:
        name = " ".join(row.name.split())
        if len(name) > _MAX_NAME_CHARS:
            name = name[: _MAX_NAME_CHARS - 1].rstrip() + "…"
        axes.text(0, top + _NAME - 5, name)
        top += _NAME
        bar_height = _get_bar_height(row)
        for number, bar in enumerate(row.bars):
            if bar:
                _draw_bar(axes, bar, number, (top + bar_height / 2, bar_height - 2, end))
            top += bar_height
        top += _GAP
    axes.set_xlim(0, end)
    axes.set_ylim(top, 0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if as_percent:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.grid(axis="x")
    else:
        axes.set_xticks([])


def _draw_bar(axes: Axes, bar: Bar, number: int, geometry: tuple[float, float, float]) -> None:
    middle, height, end = geometry
    length = min(max(bar.value, 0.0), end)
    patches = axes.barh(middle, length, height, color=series_colour(number))
    if bar.tooltip:
        add_tooltip(patches[0], bar.tooltip)
    low, high = (min(max(value, 0.0), end) for value in bar.interval or (0.0, 0.0))
    if low < high:
        axes.plot([low, high], [middle, middle], color=TEXT, linewidth=1.3)
        for edge in (low, high):
            axes.plot([edge, edge], [middle - 3, middle + 3], color=TEXT, linewidth=1.3)
    color = TEXT if bar.interval else SOFT
    x = end + end * 8 / (WIDTH - _NUMBER)
    axes.text(x, middle, bar.text, color=color, va="center_baseline", fontsize=SMALL)
