"""Drawings as parts of a page: colours are the page's, nothing has an id, text is only text."""

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


def nasty_page() -> str:
    point = Point(0.5, 0.75, (0.6, 0.9), NASTY)
    scale = Scale(NASTY, 0, 1, [(0.5, NASTY)])
    grid = Grid(NASTY, [[0.25, 0.5], [0.75, 1.0]])
    sides = GridLabels(NASTY, ["a", "<$>"], NASTY, ["b", "<&>"])
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
            render_heat_maps(NASTY, [grid, grid, grid], sides),
        ],
        about=NASTY,
    )


def test_nothing_in_a_page_is_markup_unless_it_was_made_as_such() -> None:
    page = nasty_page()
    check_page(page)
    assert "<script" not in page
    text = text_of(page)
    # A dollar is a dollar in drawings too, no formula.
    assert text.count("<script>&$x$") > 30


def test_equal_pages_have_equal_bytes_whatever_a_person_set_for_matplotlib() -> None:
    first = nasty_page()
    with mpl.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert nasty_page() == first
        assert mpl.rcParams["font.size"] == 31


def test_a_colour_that_is_not_the_pages_is_refused() -> None:
    with pytest.raises(KeyError, match="#ff0000"):
        render_svg("red", 100, lambda figure: _line(figure, "red"))
    assert series_variable(0) == series_variable(len(SERIES)) == VARIABLES[SERIES[0]]


def _line(figure: Figure, colour: str) -> None:
    figure.subplots().plot([0, 1], [0, 1], "o-", color=colour)


def test_markers_are_drawn_where_they_stand() -> None:
    svg = render_svg("two dots", 100, lambda figure: _line(figure, SERIES[2]))
    assert svg.count("translate(") == 2
    assert "<defs" not in svg
    assert " id=" not in svg
    assert "var(--s2)" in svg


def test_hints_are_titles_of_what_they_belong_to() -> None:
    def draw(figure: Figure) -> None:
        (bar,) = figure.subplots().bar([0], [1], color=SERIES[0])
        add_tooltip(bar, "a < b", hover_only=True)

    svg = render_svg("hinted", 100, draw)
    assert '<g class="hint"><title>a &lt; b</title><path d=' in svg
    assert isinstance(svg, Markup)


def test_bars_are_as_long_as_their_values() -> None:
    def width(value: float) -> float:
        svg = str(
            render_bars("bar", [BarRow("one", (Bar(value, "", None, "it"),))], as_percent=True)
        )
        numbers = svg.split("<title>it</title><path d=")[1].split('"')[1].split()
        across = [float(number) for number in numbers if number[0].isdigit()][::2]
        return max(across) - min(across)

    assert width(0.5) == pytest.approx(width(1.0) / 2, abs=0.2)
    assert width(1.01) == width(1.0)


def test_numbers_and_colours_in_words_stay_as_they_are() -> None:
    text = "0.0005 #00ff00 url(a)"
    svg = str(render_bars(text, [BarRow(text, (Bar(1, text, None, text),))]))
    assert svg.count(text) == 4


def test_names_may_be_in_any_script_and_broken() -> None:
    name = "\u8bed\u8a00 \x00\x0b\ud800\n\N{GRINNING FACE}"
    page = render_document(name, [render_bars(name, [BarRow(name, (Bar(1, name),))])])
    assert "\u8bed\u8a00 \ufffd \ufffd \N{GRINNING FACE}" in page
    assert page.encode(errors="replace")


def test_an_interval_ends_where_the_axis_does() -> None:
    def lines(low: float, high: float) -> int:
        svg = render_bars("bar", [BarRow("", (Bar(0.5, "", (low, high)),))], as_percent=True)
        assert svg.count("<path d=") == svg.count("<path")
        return svg.count("stroke-width: 1.3")

    # Its length and two ends; nothing of one that has no length.
    assert lines(-0.01, 0.2) == lines(0.4, 1.01) == lines(0.4, 0.6) == 3
    assert lines(-0.02, -0.01) == lines(0.5, 0.5) == 0
