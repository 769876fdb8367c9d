"""Points joined by lines, each with the interval it may lie in; a colour for each line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.reports.colours import SOFT, series_colour
from serve.reports.svg import WIDTH, add_tooltip, render_svg

_HEIGHT = 250
# Pixels between the points of two lines at the same place: their intervals can be told apart.
_LINE_OFFSET_PX = 5


class Point(NamedTuple):
    """One point.

    Attributes:
        across: its place.
        up: its height.
        interval: in which the height would lie if it were measured again; None if unknown.
        hint: what is shown at the pointer; may be empty.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    tooltip: str = ""


class Scale(NamedTuple):
    """One axis.

    Attributes:
        title: what its numbers are.
        start: where it begins.
        end: where it ends.
        ticks: which places are written there, and how; may be outside.
    """

    title: str
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """What is drawn.

    Attributes:
        label: see `drawn`.
        lines: points from left to right, by line.
        across: the horizontal axis.
        up: the vertical one.
        guides: dashed lines to compare with, each from one place to another.
        apart: whether lines stand beside one another, since they have points at the same places.
    """

    label: str
    lines: Sequence[Sequence[Point]]
    x_axis: Scale
    y_axis: Scale
    guides: Sequence[tuple[tuple[float, float], tuple[float, float]]] = ()
    offset_lines: bool = False


def render_curves(plot: CurvePlot) -> Markup:
    """The drawing."""
    return render_svg(plot.label, _HEIGHT, lambda figure: _draw(figure, plot))


def build_percent_scale(title: str, lowest: float) -> Scale:
    """Of shares: up to 100%, from a round number not above the lowest that is drawn.

    Args:
        title: see `Scale`.
        lowest: 0 to 1.
    """
    start = min(0.8, max(0.0, int(lowest * 5) / 5))
    step = 0.1 if start >= 0.4 else 0.2
    ticks = [start + step * place for place in range(round((1 - start) / step) + 1)]
    return Scale(title, start, 1.0, [(tick, f"{tick:.0%}") for tick in ticks])


def _draw(figure: Figure, plot: CurvePlot) -> None:
    axes: Axes = figure.subplots()
    for (from_across, from_up), (to_across, to_up) in plot.guides:
        axes.plot(
            [from_across, to_across], [from_up, to_up], color=SOFT, linewidth=1, dashes=(4, 3)
        )
    step = (
        _LINE_OFFSET_PX * (plot.x_axis.end - plot.x_axis.start) / WIDTH
        if plot.offset_lines
        else 0.0
    )
    for number, points in enumerate(plot.lines):
        _draw_line(axes, points, number, step * (number - (len(plot.lines) - 1) / 2))
    for axis, scale in ((axes.xaxis, plot.x_axis), (axes.yaxis, plot.y_axis)):
        inside = [tick for tick in scale.ticks if scale.start <= tick[0] <= scale.end]
        axis.set_ticks([place for place, _ in inside], [text for _, text in inside])
        axis.set_label_text(scale.title)
    axes.set_xlim(plot.x_axis.start, plot.x_axis.end)
    axes.set_ylim(plot.y_axis.start, plot.y_axis.end)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def _draw_line(axes: Axes, points: Sequence[Point], number: int, offset: float) -> None:
    colour = series_colour(number)
    across = [point.x + offset for point in points]
    axes.plot(across, [point.y for point in points], color=colour, linewidth=1.2, alpha=0.65)
    for at, point in zip(across, points, strict=True):
        if point.interval:
            axes.plot([at, at], list(point.interval), color=colour, linewidth=1.6)
        (dot,) = axes.plot([at], [point.y], "o", color=colour, markersize=5, markeredgewidth=0)
        if point.tooltip:
            add_tooltip(dot, point.tooltip)
