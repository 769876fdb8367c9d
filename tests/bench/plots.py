"""The measured numbers as pictures: small SVG files, equal for equal numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from growth import Curve
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import EAGER, ONE_POST, OUR_CLIENTS, PADDED, SORTED, VLLM_CLIENTS, WITHOUT_CACHE
from rounds import Measured
from ways import IN_PROCESS, ONE_BY_ONE

_STYLE = {
    "svg.fonttype": "none",  # letters instead of outlines: a tenth of the size
    "svg.hashsalt": "skyreward",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
# Ours in blue, vLLM in orange, plain transformers in grey.
_COLOURS = {
    PADDED: "#d0d0d0",
    SORTED: "#b4b4b4",
    EAGER: "#999999",
    ONE_BY_ONE: "#7c7c7c",
    IN_PROCESS: "#12395c",
    ONE_POST: "#1f6fb4",
    OUR_CLIENTS: "#63aae0",
    WITHOUT_CACHE: "#b5d5ee",
    VLLM_CLIENTS: "#e08a3c",
}


def draw_curve(curve: Curve, folder: Path) -> Path:
    """Tokens/s against what grows, one line a way."""

    def draw(axes: Axes) -> None:
        for way, points in curve.points.items():
            axes.plot(list(points), list(points.values()), "o-", color=_COLOURS[way], label=way)
        sizes = sorted({size for points in curve.points.values() for size in points})
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(curve.axis)
        axes.set_title(curve.title, fontsize=10, loc="left")

    return _draw(folder / f"{curve.name}.svg", draw, width=6.0)


def draw_workloads(measured: Mapping[str, Measured], folder: Path) -> Path:
    """Tokens/s of every way on every workload, as groups of bars."""

    def draw(axes: Axes) -> None:
        ways = list(dict.fromkeys(way for one in measured.values() for way in one.seconds))
        width = 0.8 / len(ways)
        for index, way in enumerate(ways):
            places = [n + (index - (len(ways) - 1) / 2) * width for n in range(len(measured))]
            heights = [one.tokens_per_s(way) for one in measured.values()]
            axes.bar(places, heights, width, color=_COLOURS[way], label=way)
        axes.set_xticks(range(len(measured)), list(measured))
        axes.grid(axis="x", visible=False)
        axes.set_title("All tokens of the conversations, shared or not", fontsize=10, loc="left")

    return _draw(folder / "workloads.svg", draw, width=8.0)


def _draw(file: Path, draw: Any, width: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("tokens/s")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(file, metadata={"Date": None})
    return file
