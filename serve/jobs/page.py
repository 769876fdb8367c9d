"""Pieces of a page of HTML: tables, lists of bars, histograms. Knows nothing of jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from serve.jobs.spread import Bars, Spread

_MOST_BARS = 48
# What lies beyond is said and not drawn: a single number far away would make one bar of all others.
_DRAWN = (0.0005, 0.9995)
_WIDTH, _HEIGHT, _TOP = 960, 240, 20

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #59636e;
  --line: #d1d9e0; --first: #1f6fb4; --second: #c25e12; }
@media (prefers-color-scheme: dark) { :root { --back: #11151a; --text: #e6eaef; --soft: #9aa5b1;
  --line: #323b45; --first: #63aae0; --second: #f0a05a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 0; }
p { margin: 0.2rem 0 0.6rem; color: var(--soft); }
.tables { display: flex; flex-wrap: wrap; column-gap: 4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.15rem 0.9rem 0.15rem 0; font-weight: normal; text-align: right;
  white-space: nowrap; }
th { color: var(--soft); } th:first-child, td:first-child { text-align: left;
  white-space: normal; } td.in:first-child { padding-left: 1rem; }
.tables section { min-width: 20rem; } .tables table { width: 100%; }
.tables td:last-child { padding-right: 0; }
@media (max-width: 40rem) { body { font-size: 14px; } .tables section { width: 100%; } }
svg { display: block; width: 100%; height: 240px; border-bottom: 1px solid var(--line); }
.first { fill: var(--first); } .second { fill: var(--second); }
.over { fill-opacity: 0.6; } .all { fill: transparent; }
.all:hover { fill: var(--text); fill-opacity: 0.12; }
.zero { stroke: var(--text); stroke-dasharray: 4 4; vector-effect: non-scaling-stroke; }
.plot { position: relative; } .plot .top { position: absolute; left: 0; top: 0;
  color: var(--soft); font-size: 0.85rem; line-height: 1.3; }
.line { stroke: var(--line); vector-effect: non-scaling-stroke; }
.axis { position: relative; height: 1.6rem; color: var(--soft); font-size: 0.85rem;
  margin-bottom: 0.4rem; }
.axis span { position: absolute; transform: translateX(-50%); }
.key { display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.35em 0 0; }
.key.first { background: var(--first); } .key.second { background: var(--second); }
.legend span + span.key { margin-left: 1.2em; }
.bar { height: 0.8rem; min-width: 2px; background: var(--second); }
.bars td:last-child { width: 100%; padding-right: 0; }
"""


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers that are drawn in one colour."""

    name: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram.

    Attributes:
        title: its heading.
        about: what is counted.
        axis: what the numbers are.
        series: one or two.
        powers: whether the numbers are exponents of 2, of which the axis shows the powers.
    """

    title: str
    about: str
    axis: str
    series: tuple[Series, ...]
    powers: bool = False


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page; leading tables stand side by side."""
    tables = [part for part in parts if part.startswith("<section><h2>") and "<svg" not in part]
    lead = tables[:2]
    rest = [part for part in parts if part not in lead]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<div class="tables">{"".join(lead)}</div>\n'
        + "\n".join(rest)
        + "\n</body>\n</html>\n"
    )


def table(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    rows = "".join(
        f'<tr><td class="{"in" if name.startswith(" ") else "name"}">{escape(name.strip())}</td>'
        f"<td>{escape(value)}</td></tr>"
        for name, value in lines
    )
    return f"<section><h2>{escape(title)}</h2><table>{rows}</table></section>"


def bar_list(title: str, counts: Sequence[tuple[str, int]]) -> str:
    """Names and how often each was there, as horizontal bars."""
    most = max((count for _, count in counts), default=1)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count:,}</td>"
        f'<td><div class="bar" style="width:{100 * count / most:.2f}%"></div></td></tr>'
        for name, count in counts
    )
    return f'<section class="bars"><h2>{escape(title)}</h2><table>{rows}</table></section>'


def chart(what: Chart, rows: Sequence[Sequence[str]]) -> str:
    """A histogram with its scale, and a table below; the first row of that is its head."""
    start, end = _borders(what.series)
    drawn = [series.spread.bars(start, end, _MOST_BARS) for series in what.series]
    outside = sum(s.spread.count - sum(b.counts) for s, b in zip(what.series, drawn, strict=True))
    about = what.about
    if outside:
        about += f" (far away and not drawn: {outside:,})"
    head, *body = ([escape(cell) for cell in row] for row in rows)
    cells = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    cells += "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body)
    return (
        f"<section><h2>{escape(what.title)}</h2><p>{escape(about)}</p>{_legend(what.series)}"
        f"{_svg(what, drawn)}{_scale(what, drawn[0])}"
        f'<div class="wide"><table>{cells}</table></div></section>'
    )


def _borders(series: Sequence[Series]) -> tuple[float, float]:
    spreads = [one.spread for one in series if one.spread.count]
    low, high = _DRAWN
    return min(s.quantile(low) for s in spreads), max(s.quantile(high) for s in spreads)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    marks = zip(series, ("first", "second"), strict=True)
    keys = "".join(
        f'<span class="key {mark}"></span><span>{escape(one.name)}</span>' for one, mark in marks
    )
    return f'<div class="legend">{keys}</div>'


def _svg(what: Chart, drawn: Sequence[Bars]) -> str:
    bars = drawn[0]
    most = max((count for one in drawn for count in one.counts), default=0) or 1
    step = _WIDTH / len(bars.counts)
    shapes = [f'<line class="line" x1="0" x2="{_WIDTH}" y1="{_TOP}" y2="{_TOP}"/>']
    for one, style in zip(drawn, ("first", "second over"), strict=False):
        for place, count in enumerate(one.counts):
            if count:
                # Of what is there at all, a line can be seen.
                height = max(1.5, (_HEIGHT - _TOP) * count / most)
                shapes.append(
                    f'<rect class="{style}" x="{place * step:.2f}" y="{_HEIGHT - height:.2f}" '
                    f'width="{step * 0.92:.2f}" height="{height:.2f}"/>'
                )
    if not what.powers and bars.start < 0 < bars.end:
        at = -bars.start / bars.width * step
        shapes.append(f'<line class="zero" x1="{at:.2f}" x2="{at:.2f}" y1="0" y2="{_HEIGHT}"/>')
    # Over all, so that a whole column answers the pointer.
    for place in range(len(bars.counts)):
        shapes.append(
            f'<rect class="all" x="{place * step:.2f}" y="0" width="{step:.2f}" '
            f'height="{_HEIGHT}"><title>{escape(_column(what, drawn, place))}</title></rect>'
        )
    return (
        f'<div class="plot"><div class="top" aria-hidden="true">{most:,}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(what.title)}: {escape(what.about)}">{"".join(shapes)}</svg></div>'
    )


def _column(what: Chart, drawn: Sequence[Bars], place: int) -> str:
    bars = drawn[0]
    low, high = bars.start + place * bars.width, bars.start + (place + 1) * bars.width
    span = f"{_label(what, low)} to {_label(what, high)}"
    counts = [
        f"{one.counts[place]:,} {series.name}" if len(drawn) > 1 else f"{one.counts[place]:,}"
        for one, series in zip(drawn, what.series, strict=True)
    ]
    return f"{what.axis} {span}: {', '.join(counts)}"


def _scale(what: Chart, bars: Bars) -> str:
    marks = "".join(
        f'<span style="left:{100 * (tick - bars.start) / (bars.end - bars.start):.2f}%">'
        f"{escape(_label(what, tick))}</span>"
        for tick in _ticks(bars.start, bars.end, whole=what.powers)
    )
    return f'<div class="axis" aria-hidden="true">{marks}</div>'


def _ticks(start: float, end: float, whole: bool) -> Iterator[float]:
    """Up to eight round numbers, none so near the border that its text would be cut off."""
    margin = 0.03 * (end - start)
    rough = (end - start) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil((start + margin) / step)
    for number in range(first, math.floor((end - margin) / step) + 1):
        yield number * step


def _label(what: Chart, value: float) -> str:
    if what.powers:
        return f"{2**value:,.0f}"
    return f"{value:.4g}"
