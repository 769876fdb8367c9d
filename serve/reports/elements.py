"""Elements of a page other than plots: tables, legends, collapsible blocks, warnings.

All text that is not `Markup` is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from serve.reports.colours import series_variable


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: text or markup.
        kind: class of `page.css`: `text` for prose, `best` for the best value of a column, `name`
            for a name at the head of a column; empty for other cells.
    """

    content: Markup | str
    kind: str = ""


def key_value_table(lines: Iterable[tuple[str, str]]) -> Markup:
    """Render names and values; a name that starts with a space is indented."""
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
    """Render a table that scrolls horizontally if it is too wide; the first column is text.

    Args:
        head: heads of the columns; omitted if all are empty.
        rows: rows from top to bottom.
    """
    body = Markup("").join(_build_row(row, "td") for row in rows)
    header = (
        Markup("<thead>{}</thead>").format(_build_row(head, "th"))
        if any(_is_filled(cell) for cell in head)
        else ""
    )
    return Markup('<div class="wide"><table>{}<tbody>{}</tbody></table></div>').format(header, body)


def format_number(value: float, form: str) -> str:
    """Format a number with a typographic minus sign, which is as wide as a plus sign.

    Args:
        value: finite number.
        form: format specification, as for `format`.
    """
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def format_quantity(number: int, what: str) -> str:
    """Format a number with a noun, such as "1 item" or "2,000 items"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def legend(names: Sequence[str]) -> Markup:
    """Render the legend of the series; empty if there is only one series."""
    if len(names) < 2:
        return Markup()
    keys = (Markup("<li>{}{}</li>").format(colour_key(n), name) for n, name in enumerate(names))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(keys))


def colour_key(number: int) -> Markup:
    """Render a marker in the color of a series."""
    return Markup('<span class="key" style="--key: {}"></span>').format(series_variable(number))


def details_block(summary: Markup | str, *children: Markup | str) -> Markup:
    """Render a collapsible block with a summary line."""
    return Markup("<details><summary>{}</summary>{}</details>").format(
        summary, Markup("").join(children)
    )


def text_block(text: str, series: int | None = None) -> Markup:
    """Render a text with its line breaks.

    Args:
        text: plain text.
        series: series whose color marks the text; None for a text without color.
    """
    style = "" if series is None else Markup(' style="--key: {}"').format(series_variable(series))
    return Markup('<div class="words" tabindex="0"{}>{}</div>').format(style, text)


def stat_cards(stats: Iterable[tuple[str, str]]) -> Markup:
    """Render key numbers with their names; the first number is large."""
    cards = (
        Markup('<div class="tile{}"><b>{}</b>{}</div>').format("" if n else " main", number, name)
        for n, (number, name) in enumerate(stats)
    )
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(cards))


def warning(title: str, lines: Sequence[str], max_lines: int = 6) -> Markup:
    """Render a warning.

    Args:
        title: short title.
        lines: lines of the warning, as a list.
        max_lines: number of lines that are not collapsed.
    """
    content = _build_list(lines[:max_lines]) if lines else Markup()
    if len(lines) > max_lines:
        content += details_block(
            f"and {len(lines) - max_lines:,} more", _build_list(lines[max_lines:])
        )
    return Markup('<aside class="warn" role="note"><strong>{}</strong>{}</aside>').format(
        title, content
    )


def _is_filled(cell: Cell | Markup | str) -> bool:
    return bool(cell.content if isinstance(cell, Cell) else cell)


def _build_list(lines: Sequence[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<ul>{}</ul>").format(items)


def _build_row(cells: Sequence[Cell | Markup | str], tag: str) -> Markup:
    rendered = []
    for index, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            cell = Cell(cell, "" if index else "first")
        attribute = Markup(' class="{}"').format(cell.kind) if cell.kind else ""
        rendered.append(Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), attribute, cell.content))
    return Markup("<tr>{}</tr>").format(Markup("").join(rendered))
