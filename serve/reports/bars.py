"""Horizontal bars, each with its name above it, so that long names fit a narrow page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.reports.colours import SOFT, TEXT, series_colour
from serve.reports.svg import SMALL, WIDTH, add_tooltip, render_svg

# Pixels: a name, a bar alone, one of several, room after a row, the axis, numbers at the right.
_NAME, _ALONE, _BAR, _GAP, _AXIS, _NUMBER = 18, 11, 14, 7, 22, 58
_LONGEST_NAME = 48


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        value: its length; from 0.
        text: the number that stands at its right.
        interval: in which the value would lie if it were measured again, drawn as far as the axis
            goes; None if unknown.
        hint: what is shown at the pointer; may be empty.
    """

    value: float
    text: str
    interval: tuple[float, float] | None = None
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class BarRow:
    """A name, and a bar for each series; None where one has none."""

    name: str
    bars: tuple[Bar | None, ...]


def render_bars(label: str, rows: Sequence[BarRow], as_percent: bool = False) -> Markup:
    """A drawing of bars.

    Args:
        label: see `drawn`.
        rows: from top to bottom; at least one.
        shares: whether the values are shares of 1, drawn on an axis in percent from 0 to 100.
    """
    height = sum(_NAME + _get_bar_height(row) * len(row.bars) + _GAP for row in rows)
    height += _AXIS if as_percent else 0
    return render_svg(label, height, lambda figure: _draw(figure, rows, height, as_percent))


def _get_bar_height(row: BarRow) -> int:
    return _ALONE if len(row.bars) == 1 else _BAR


def _draw(figure: Figure, rows: Sequence[BarRow], height: float, as_percent: bool) -> None:
    # Heights are pixels here, so that a row looks alike in a plot of two and of a hundred.
    figure.set_layout_engine("none")
    bottom = _AXIS / height if as_percent else 0.0
    axes: Axes = figure.add_axes((0.0, bottom, 1 - _NUMBER / WIDTH, 1 - bottom))
    longest = max((bar.value for row in rows for bar in row.bars if bar), default=0.0) or 1.0
    end = 1.0 if as_percent else longest
    top = 0.0
    for row in rows:
        name = " ".join(row.name.split())
        if len(name) > _LONGEST_NAME:
            name = name[: _LONGEST_NAME - 1].rstrip() + "…"
        axes.text(0, top + _NAME - 5, name)
        top += _NAME
        thick = _get_bar_height(row)
        for number, bar in enumerate(row.bars):
            if bar:
                _draw_bar(axes, bar, number, (top + thick / 2, thick - 2, end))
            top += thick
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
    middle, thick, end = geometry
    drawn_bar = axes.barh(middle, min(max(bar.value, 0.0), end), thick, color=series_colour(number))
    if bar.tooltip:
        add_tooltip(drawn_bar[0], bar.tooltip)
    low, high = (min(max(value, 0.0), end) for value in bar.interval or (0.0, 0.0))
    if low < high:
        axes.plot([low, high], [middle, middle], color=TEXT, linewidth=1.3)
        for edge in (low, high):
            axes.plot([edge, edge], [middle - 3, middle + 3], color=TEXT, linewidth=1.3)
    colour = TEXT if bar.interval else SOFT
    at = end + end * 8 / (WIDTH - _NUMBER)
    axes.text(at, middle, bar.text, color=colour, va="center_baseline", fontsize=SMALL)
