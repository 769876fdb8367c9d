"""Plots and elements of a page: text is escaped, no element has an id, lengths are to scale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from html_pages import check_page, text_of
from hypothesis import given
from hypothesis import strategies as st

from serve.reports.page import get_environment, render_page
from serve.reports.plots import (
    Axis,
    Bar,
    BarRow,
    Frame,
    Point,
    build_percent_axis,
    choose_ticks,
)

NASTY = '<script>&$x$\N{MINUS SIGN}"'
_IMPORTS = """{% extends "page.html.j2" %}
{% import "elements.html.j2" as elements %}{% import "plots.html.j2" as plots %}
{% block main %}"""


def render(folder: Path, body: str, **context: Any) -> str:
    """Render a page whose main block is a template."""
    (folder / "test.html.j2").write_text(_IMPORTS + body + "{% endblock %}")
    context = {"title": NASTY, "about": NASTY, "nasty": NASTY, **context}
    return render_page(folder / "test.html.j2", **context)


def render_bars(*rows: BarRow, **options: Any) -> str:
    plots: Any = get_environment().get_template("plots.html.j2").module
    return str(plots.bars("bars", rows, **options))


def test_page_escapes_plain_text(tmp_path: Path) -> None:
    point = Point(0.5, 0.75, (0.6, 0.9), NASTY)
    frame = Frame(Axis(NASTY, 0, 1, [(0.5, NASTY)]), build_percent_axis(NASTY, 0.5), 250)
    page = render(
        tmp_path,
        """
        {{ elements.warning(nasty, [nasty] * 9) }}
        {{ elements.facts([(nasty, nasty)]) }}
        {{ elements.table([nasty], [[nasty]]) }}
        {{ elements.legend([nasty, nasty]) }}
        {{ elements.words(nasty, 1) }}
        {{ plots.bars(nasty, rows) }}
        {{ plots.curves(nasty, frame, lines, [[(0, 0), (1, 1)]], offset=5) }}
        {{ plots.heat_maps(nasty, {nasty: grid, "b": grid}, nasty, nasty, [nasty, "<$>"]) }}
        """,
        rows=[BarRow(NASTY, [Bar(0.5, NASTY, (0.4, 0.6), NASTY), None])],
        frame=frame,
        lines=[[point, point], [point]],
        grid=[[0.25, 0.5], [0.75, 1.0]],
    )
    check_page(page)
    assert "<script" not in page
    assert text_of(page).count("<script>&$x$") > 30
    assert "var(--s2)" in page


def test_bar_length_is_proportional_to_value() -> None:
    def measure_width(value: float) -> float:
        match = re.search('<rect [^>]* width="([^"]*)"', render_bars(BarRow("", [Bar(value, "")])))
        assert match
        return float(match[1])

    assert measure_width(0.5) == pytest.approx(measure_width(1.0) / 2, abs=0.2)
    assert measure_width(1.01) == measure_width(1.0)


def test_equal_bars_have_colors_of_their_series() -> None:
    bar = Bar(0.5, "50%")
    page = render_bars(BarRow("one", [bar, None, bar]))
    assert re.findall(r'class="mark (s\d)" x="0" y="(\d+)"', page) == [("s0", "19"), ("s2", "47")]


def test_numbers_and_colors_in_text_are_unchanged() -> None:
    text = "0.0005 #00ff00 url(a)"
    assert render_bars(BarRow(text, [Bar(1, text, None, text)]), longest=1).count(text) == 3


def test_names_may_have_any_script_or_invalid_characters(tmp_path: Path) -> None:
    name = "\u8bed\u8a00 \x00\x0b\ud800\n\N{GRINNING FACE}"
    row = BarRow(name, [Bar(1, name)])
    page = render(tmp_path, "{{ plots.bars(title, rows) }}", title=name, rows=[row])
    assert "\u8bed\u8a00 \ufffd \ufffd \N{GRINNING FACE}" in page
    assert not re.search("[\x00-\x08\x0b\ud800-\udfff]", page)


def test_long_names_are_shortened() -> None:
    assert f">{'x' * 47}…<" in render_bars(BarRow("x" * 49, [Bar(1, "")]))
    assert f">{'x' * 48}<" in render_bars(BarRow("x" * 48, [Bar(1, "")]))


def test_interval_is_clipped_to_axis() -> None:
    def find_interval(low: float, high: float) -> list[str]:
        page = render_bars(BarRow("", [Bar(0.5, "", (low, high))]))
        return re.findall(r'<path class="interval" d="M([\d.]+) [\d.]+H([\d.]+)M', page)

    assert find_interval(-0.01, 0.5) == [("0.0", "171.0")]
    assert find_interval(0.5, 1.01) == [("171.0", "342.0")]
    # Nothing for an empty interval.
    assert find_interval(-0.02, -0.01) == find_interval(0.5, 0.5) == []


def test_points_are_at_their_positions() -> None:
    frame = Frame(Axis("x", 0, 2, [(0, "0"), (5, "5")]), Axis("", 0, 1, [(1, "1")]), 100)
    plots: Any = get_environment().get_template("plots.html.j2").module
    page = str(plots.curves("two", frame, [[Point(0, 0), Point(2, 1)], []]))
    assert re.findall('cx="([^"]*)" cy="([^"]*)"', page) == [
        (str(float(frame.left)), str(float(frame.bottom))),
        (str(float(frame.right)), str(float(frame.top))),
    ]
    # Ticks outside the axis are not drawn.
    assert ">5<" not in page


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9), st.booleans())
def test_ticks_are_few_round_numbers_in_range(
    start: float, width: float, max_steps: int, whole: bool
) -> None:
    ticks = choose_ticks(start, start + width, max_steps, whole=whole)
    assert len(ticks) <= max_steps + 1
    assert ticks == sorted(ticks)
    slack = 1e-9 * max(1.0, abs(start), width)
    assert all(start - slack <= tick <= start + width + slack for tick in ticks)
    if whole:
        assert all(tick.is_integer() for tick in ticks)
    else:
        assert len(ticks) >= max_steps // 3
