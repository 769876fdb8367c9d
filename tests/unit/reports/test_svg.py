"""Inline SVG of a page: colors are CSS variables, no element has an id, text is escaped."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from html_pages import check_page, text_of
from markupsafe import Markup
from matplotlib.figure import Figure

from serve.reports.bars import Bar, BarRow, render_bars
from serve.reports.colours import SERIES, VARIABLES, series_variable
from serve.reports.curves import CurvePlot, Point, Scale, build_percent_scale, render_curves
from serve.reports.document import render_document, section
from serve.reports.elements import (
    details_block,
    key_value_table,
    legend,
    table,
    text_block,
    warning,
)
from serve.reports.heat_map import Grid, GridLabels, render_heat_maps
from serve.reports.svg import add_tooltip, render_svg

NASTY = '<script>&$x$\N{MINUS SIGN}"'


def render_nasty_page() -> str:
    point = Point(0.5, 0.75, (0.6, 0.9), NASTY)
    scale = Scale(NASTY, 0, 1, [(0.5, NASTY)])
    grid = Grid(NASTY, [[0.25, 0.5], [0.75, 1.0]])
    labels = GridLabels(NASTY, ["a", "<$>"], NASTY, ["b", "<&>"])
    return render_document(
        NASTY,
        [
            warning(NASTY, [NASTY] * 9),
            section(
                NASTY, key_value_table([(NASTY, NASTY)]), table([NASTY], [[NASTY]]), about=NASTY
            ),
            section(
                NASTY, legend([NASTY, NASTY]), details_block(NASTY, text_block(NASTY, 1)), NASTY
            ),
            render_bars(
                NASTY, [BarRow(NASTY, (Bar(0.5, NASTY, (0.4, 0.6), NASTY), None))], as_percent=True
            ),
            render_curves(
                CurvePlot(NASTY, [[point, point], [point]], scale, build_percent_scale(NASTY, 0.5))
            ),
            render_heat_maps(NASTY, [grid, grid, grid], labels),
        ],
        about=NASTY,
    )


def test_page_escapes_plain_text() -> None:
    page = render_nasty_page()
    check_page(page)
    assert "<script" not in page
    text = text_of(page)
    # A dollar sign does not start a formula in plots.
    assert text.count("<script>&$x$") > 30


def test_page_ignores_matplotlib_settings() -> None:
    first = render_nasty_page()
    with mpl.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert render_nasty_page() == first
        assert mpl.rcParams["font.size"] == 31


def test_color_without_variable_is_refused() -> None:
    with pytest.raises(KeyError, match="#ff0000"):
        render_svg("red", 100, lambda figure: _draw_line(figure, "red"))
    assert series_variable(0) == series_variable(len(SERIES)) == VARIABLES[SERIES[0]]


def _draw_line(figure: Figure, color: str) -> None:
    figure.subplots().plot([0, 1], [0, 1], "o-", color=color)


def test_markers_are_inlined_at_their_positions() -> None:
    svg = render_svg("two dots", 100, lambda figure: _draw_line(figure, SERIES[2]))
    assert svg.count("translate(") == 2
    assert "<defs" not in svg
    assert " id=" not in svg
    assert "var(--s2)" in svg


def test_tooltip_is_title_of_its_element() -> None:
    def draw(figure: Figure) -> None:
        (bar,) = figure.subplots().bar([0], [1], color=SERIES[0])
        add_tooltip(bar, "a < b", hover_only=True)

    svg = render_svg("hinted", 100, draw)
    assert '<g class="hint"><title>a &lt; b</title><path d=' in svg
    assert isinstance(svg, Markup)


def test_bar_length_is_proportional_to_value() -> None:
    def measure_width(value: float) -> float:
        svg = str(
            render_bars("bar", [BarRow("one", (Bar(value, "", None, "it"),))], as_percent=True)
        )
        numbers = svg.split("<title>it</title><path d=")[1].split('"')[1].split()
        xs = [float(number) for number in numbers if number[0].isdigit()][::2]
        return max(xs) - min(xs)

    assert measure_width(0.5) == pytest.approx(measure_width(1.0) / 2, abs=0.2)
    assert measure_width(1.01) == measure_width(1.0)


def test_numbers_and_colors_in_text_are_unchanged() -> None:
    text = "0.0005 #00ff00 url(a)"
    svg = str(render_bars(text, [BarRow(text, (Bar(1, text, None, text),))]))
    assert svg.count(text) == 4


def test_names_may_have_any_script_or_invalid_characters() -> None:
    name = "\u8bed\u8a00 \x00\x0b\ud800\n\N{GRINNING FACE}"
    page = render_document(name, [render_bars(name, [BarRow(name, (Bar(1, name),))])])
    assert "\u8bed\u8a00 \ufffd \ufffd \N{GRINNING FACE}" in page
    assert page.encode(errors="replace")


def test_interval_is_clipped_to_axis() -> None:
    def count_lines(low: float, high: float) -> int:
        svg = render_bars("bar", [BarRow("", (Bar(0.5, "", (low, high)),))], as_percent=True)
        assert svg.count("<path d=") == svg.count("<path")
        return svg.count("stroke-width: 1.3")

    # A line and two caps; nothing for an empty interval.
    assert count_lines(-0.01, 0.2) == count_lines(0.4, 1.01) == count_lines(0.4, 0.6) == 3
    assert count_lines(-0.02, -0.01) == count_lines(0.5, 0.5) == 0
