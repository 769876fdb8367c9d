"""Points joined by lines, each with the interval it may lie in; a colour for each line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.reports.colours import SOFT, series_colour
from serve.reports.svg import WIDTH, drawn, hint

_HEIGHT = 250
# Pixels between the points of two lines at the same place: their intervals can be told apart.
_APART = 5


class Point(NamedTuple):
    """One point.

    Attributes:
        across: its place.
        up: its height.
        interval: in which the height would lie if it were measured again; None if unknown.
        hint: what is shown at the pointer; may be empty.
    """

    across: float
    up: float
    interval: tuple[float, float] | None = None
    hint: str = ""


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
class Curves:
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
    across: Scale
    up: Scale
    guides: Sequence[tuple[tuple[float, float], tuple[float, float]]] = ()
    apart: bool = False


def curves(what: Curves) -> Markup:
    """The drawing."""
    return drawn(what.label, _HEIGHT, lambda figure: _draw(figure, what))


def percent_scale(title: str, lowest: float) -> Scale:
    """Of shares: up to 100%, from a round number not above the lowest that is drawn.

    Args:
        title: see `Scale`.
        lowest: 0 to 1.
    """
    start = min(0.8, max(0.0, int(lowest * 5) / 5))
    step = 0.1 if start >= 0.4 else 0.2
    ticks = [start + step * place for place in range(round((1 - start) / step) + 1)]
    return Scale(title, start, 1.0, [(tick, f"{tick:.0%}") for tick in ticks])


def _draw(figure: Figure, what: Curves) -> None:
    axes: Axes = figure.subplots()
    for (from_across, from_up), (to_across, to_up) in what.guides:
        axes.plot(
            [from_across, to_across], [from_up, to_up], color=SOFT, linewidth=1, dashes=(4, 3)
        )
    step = _APART * (what.across.end - what.across.start) / WIDTH if what.apart else 0.0
    for number, points in enumerate(what.lines):
        _draw_line(axes, points, number, step * (number - (len(what.lines) - 1) / 2))
    for axis, scale in ((axes.xaxis, what.across), (axes.yaxis, what.up)):
        inside = [tick for tick in scale.ticks if scale.start <= tick[0] <= scale.end]
        axis.set_ticks([place for place, _ in inside], [text for _, text in inside])
        axis.set_label_text(scale.title)
    axes.set_xlim(what.across.start, what.across.end)
    axes.set_ylim(what.up.start, what.up.end)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def _draw_line(axes: Axes, points: Sequence[Point], number: int, aside: float) -> None:
    colour = series_colour(number)
    across = [point.across + aside for point in points]
    axes.plot(across, [point.up for point in points], color=colour, linewidth=1.2, alpha=0.65)
    for at, point in zip(across, points, strict=True):
        if point.interval:
            axes.plot([at, at], list(point.interval), color=colour, linewidth=1.6)
        (dot,) = axes.plot([at], [point.up], "o", color=colour, markersize=5, markeredgewidth=0)
        if point.hint:
            hint(dot, point.hint)
