"""Line plots with a confidence interval at each point and a color for each line."""

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
# Offset between the points of two lines at the same position, so that their intervals do not
# overlap.
_LINE_OFFSET_PX = 5


class Point(NamedTuple):
    """A point of a line.

    Attributes:
        x: horizontal coordinate.
        y: vertical coordinate.
        interval: confidence interval of `y`; None if unknown.
        tooltip: text that is shown on hover; may be empty.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    tooltip: str = ""


class Scale(NamedTuple):
    """An axis.

    Attributes:
        title: title of the axis.
        start: lower end of the axis.
        end: upper end of the axis.
        ticks: positions and labels of the ticks; ticks outside the axis are not drawn.
    """

    title: str
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """A line plot.

    Attributes:
        label: see `render_svg`.
        lines: points of each line, from left to right.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        guides: dashed reference lines, each from one point to another.
        offset_lines: whether to shift the lines horizontally, for points with equal positions.
    """

    label: str
    lines: Sequence[Sequence[Point]]
    x_axis: Scale
    y_axis: Scale
    guides: Sequence[tuple[tuple[float, float], tuple[float, float]]] = ()
    offset_lines: bool = False


def render_curves(plot: CurvePlot) -> Markup:
    """Render a line plot."""
    return render_svg(plot.label, _HEIGHT, lambda figure: _draw(figure, plot))


def build_percent_scale(title: str, lowest: float) -> Scale:
    """Return an axis of fractions, from a round number at or below the lowest value to 100%.

    Args:
        title: see `Scale`.
        lowest: lowest value, from 0 to 1.
    """
    start = min(0.8, max(0.0, int(lowest * 5) / 5))
    step = 0.1 if start >= 0.4 else 0.2
    ticks = [start + step * index for index in range(round((1 - start) / step) + 1)]
    return Scale(title, start, 1.0, [(tick, f"{tick:.0%}") for tick in ticks])


def _draw(figure: Figure, plot: CurvePlot) -> None:
    axes: Axes = figure.subplots()
    for (start_x, start_y), (end_x, end_y) in plot.guides:
        axes.plot([start_x, end_x], [start_y, end_y], color=SOFT, linewidth=1, dashes=(4, 3))
    step = (
        _LINE_OFFSET_PX * (plot.x_axis.end - plot.x_axis.start) / WIDTH
        if plot.offset_lines
        else 0.0
    )
    for number, points in enumerate(plot.lines):
        _draw_line(axes, points, number, step * (number - (len(plot.lines) - 1) / 2))
    for axis, scale in ((axes.xaxis, plot.x_axis), (axes.yaxis, plot.y_axis)):
        inside = [tick for tick in scale.ticks if scale.start <= tick[0] <= scale.end]
        axis.set_ticks([position for position, _ in inside], [text for _, text in inside])
        axis.set_label_text(scale.title)
    axes.set_xlim(plot.x_axis.start, plot.x_axis.end)
    axes.set_ylim(plot.y_axis.start, plot.y_axis.end)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def _draw_line(axes: Axes, points: Sequence[Point], number: int, offset: float) -> None:
    color = series_colour(number)
    xs = [point.x + offset for point in points]
    axes.plot(xs, [point.y for point in points], color=color, linewidth=1.2, alpha=0.65)
    for x, point in zip(xs, points, strict=True):
        if point.interval:
            axes.plot([x, x], list(point.interval), color=color, linewidth=1.6)
        (marker,) = axes.plot([x], [point.y], "o", color=color, markersize=5, markeredgewidth=0)
        if point.tooltip:
            add_tooltip(marker, point.tooltip)
