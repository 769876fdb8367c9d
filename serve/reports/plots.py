"""Data of plots, and the coordinates at which `plots.html.j2` draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH = 400
"""Width of a plot in pixels: a phone shows it at its size, a wider screen two side by side."""
# Widest character of an axis' numbers, distance of plot and edge, line of text, in pixels.
_CHARACTER, _MARGIN, _LINE = 7, 8, 16


class Bar(NamedTuple):
    """One bar."""

    value: float  # length of the bar, at least 0
    text: str  # number to the right of the bar
    interval: tuple[float, float] | None = None  # confidence interval of the value; None if unknown
    tooltip: str = ""  # text that is shown on hover; may be empty


class BarRow(NamedTuple):
    """A name and a bar for each series; None for a series without a bar."""

    name: str
    bars: Sequence[Bar | None]


class Point(NamedTuple):
    """A point of a line."""

    x: float
    y: float
    interval: tuple[float, float] | None = None  # confidence interval of `y`; None if unknown
    tooltip: str = ""  # text that is shown on hover; may be empty


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis."""

    title: str  # title of the axis; may be empty
    start: float  # lower end of the axis
    end: float  # upper end of the axis
    ticks: Sequence[tuple[float, str]]  # positions and labels; those outside the axis are not drawn

    @property
    def visible_ticks(self) -> list[tuple[float, str]]:
        """Ticks on the axis."""
        return [tick for tick in self.ticks if self.start <= tick[0] <= self.end]

    def locate(self, value: float) -> float:
        """Return a value as a fraction of the axis, at most 0 to 1."""
        return min(1.0, max(0.0, (value - self.start) / (self.end - self.start)))


@dataclass(frozen=True, slots=True)
class Frame:
    """The area between two axes, in pixels of the plot."""

    x_axis: Axis
    y_axis: Axis
    height: int

    @property
    def left(self) -> float:
        """Left edge: what the longest label of the vertical axis and its title leave."""
        longest = max((len(text) for _, text in self.y_axis.visible_ticks), default=0)
        return longest * _CHARACTER + _MARGIN + (_LINE if self.y_axis.title else 0)

    @property
    def right(self) -> float:
        """Right edge: half of the last label of the horizontal axis may be beyond."""
        ticks = self.x_axis.visible_ticks
        return WIDTH - max(_MARGIN, len(ticks[-1][1]) * _CHARACTER / 2 if ticks else 0)

    @property
    def top(self) -> float:
        """Upper edge."""
        return _MARGIN

    @property
    def bottom(self) -> float:
        """Lower edge: below are the labels and the title of the horizontal axis."""
        return self.height - _LINE - (_LINE if self.x_axis.title else 0) - _MARGIN / 2

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return round(self.left + self.x_axis.locate(value) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value, from the top."""
        return round(self.bottom - self.y_axis.locate(value) * (self.bottom - self.top), 1)


def build_percent_axis(title: str, lowest: float) -> Axis:
    """Return an axis of fractions, from a round number at or below the lowest value to 100%."""
    start = min(0.8, max(0.0, int(lowest * 5) / 5))
    step = 0.1 if start >= 0.4 else 0.2
    ticks = [start + step * index for index in range(round((1 - start) / step) + 1)]
    return Axis(title, start, 1.0, [(min(tick, 1.0), f"{tick:.0%}") for tick in ticks])


def choose_ticks(start: float, end: float, max_steps: int, *, whole: bool = False) -> list[float]:
    """Return round numbers in a range: multiples of 1, 2 or 5 times a power of 10."""
    exact = (end - start) / max_steps
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact)
    if whole:
        step = max(1.0, step)
    return [step * index for index in range(math.ceil(start / step), math.floor(end / step) + 1)]
