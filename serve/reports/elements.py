"""Pieces of a page that are no plots: tables, legends, what is folded away, what must be seen.

Text is escaped wherever it is no `Markup`, so a piece cannot forget to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from serve.reports.colours import series_variable


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table.

    Attributes:
        content: text, or markup.
        kind: class of `page.css`: `text` for words, `best` for the best of its column, `name` for a
            name that heads a column, or none of them.
    """

    content: Markup | str
    kind: str = ""


def key_value_table(lines: Iterable[tuple[str, str]]) -> Markup:
    """Names and values; a name that starts with a space belongs to the one above."""
    rows = (
        Markup("<tr><td{}>{}</td><td>{}</td></tr>").format(
            Markup(' class="in"') if name.startswith(" ") else "", name.strip(), value
        )
        for name, value in lines
    )
    return Markup('<table class="facts"><tbody>{}</tbody></table>').format(Markup("").join(rows))


def table(
    head: Sequence[Cell | Markup | str], rows: Iterable[Sequence[Cell | Markup | str]]
) -> Markup:
    """A table that scrolls by itself where it is too wide; the first column is words.

    Args:
        head: of the columns; if all are empty, there is none.
        rows: from top to bottom.
    """
    body = Markup("").join(_build_row(row, "td") for row in rows)
    top = (
        Markup("<thead>{}</thead>").format(_build_row(head, "th"))
        if any(_is_filled(cell) for cell in head)
        else ""
    )
    return Markup('<div class="wide"><table>{}<tbody>{}</tbody></table></div>').format(top, body)


def format_number(value: float, form: str) -> str:
    """A number as it is printed, with a minus that is as wide as a plus.

    Args:
        value: finite.
        form: as in `format`.
    """
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def format_quantity(number: int, what: str) -> str:
    """Such as "1 item" and "2,000 items"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def legend(names: Sequence[str]) -> Markup:
    """Which colour is whose; nothing if there is only one."""
    if len(names) < 2:
        return Markup()
    keys = (Markup("<li>{}{}</li>").format(colour_key(n), name) for n, name in enumerate(names))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(keys))


def colour_key(number: int) -> Markup:
    """A spot in the colour of a series."""
    return Markup('<span class="key" style="--key: {}"></span>').format(series_variable(number))


def details_block(summary: Markup | str, *children: Markup | str) -> Markup:
    """A line that unfolds."""
    return Markup("<details><summary>{}</summary>{}</details>").format(
        summary, Markup("").join(children)
    )


def text_block(text: str, series: int | None = None) -> Markup:
    """Somebody's text, with its line breaks.

    Args:
        text: as it is.
        series: whose colour marks it; None for no colour.
    """
    style = "" if series is None else Markup(' style="--key: {}"').format(series_variable(series))
    return Markup('<div class="words" tabindex="0"{}>{}</div>').format(style, text)


def stat_cards(stats: Iterable[tuple[str, str]]) -> Markup:
    """Figures to be seen first, the first of them large: each a number and what it is."""
    each = (
        Markup('<div class="tile{}"><b>{}</b>{}</div>').format("" if n else " main", number, name)
        for n, (number, name) in enumerate(stats)
    )
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(each))


def warning(title: str, lines: Sequence[str], max_lines: int = 6) -> Markup:
    """What must not be overlooked.

    Args:
        title: in a few words.
        lines: one a point.
        most: points that are not folded away.
    """
    shown = _build_list(lines[:max_lines]) if lines else Markup()
    if len(lines) > max_lines:
        shown += details_block(
            f"and {len(lines) - max_lines:,} more", _build_list(lines[max_lines:])
        )
    return Markup('<aside class="warn" role="note"><strong>{}</strong>{}</aside>').format(
        title, shown
    )


def _is_filled(cell: Cell | Markup | str) -> bool:
    return bool(cell.content if isinstance(cell, Cell) else cell)


def _build_list(lines: Sequence[str]) -> Markup:
    points = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<ul>{}</ul>").format(points)


def _build_row(cells: Sequence[Cell | Markup | str], tag: str) -> Markup:
    each = []
    for place, cell in enumerate(cells):
        one = cell if isinstance(cell, Cell) else Cell(cell, "" if place else "first")
        style = Markup(' class="{}"').format(one.kind) if one.kind else ""
        each.append(Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), style, one.content))
    return Markup("<tr>{}</tr>").format(Markup("").join(each))
