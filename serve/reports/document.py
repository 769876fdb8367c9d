"""The frame of a page: head, style, heading, and sections in one or two columns."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from markupsafe import Markup

_SHELL = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{about}</header>
<main>
{sections}
</main>
</body>
</html>
""")


def render_document(title: str, sections: Iterable[Markup], about: str = "") -> str:
    """Render a page.

    Args:
        title: heading and title of the page.
        sections: sections from top to bottom.
        about: line below the heading.
    """
    return str(
        _SHELL.format(
            title=title,
            style=_style(),
            policy=_policy(),
            about=Markup('<p class="about">{}</p>').format(about) if about else "",
            sections=Markup("\n").join(sections),
        )
    )


def section(title: str, *children: Markup | str, about: str = "") -> Markup:
    """Render a section with a heading.

    Args:
        title: the heading.
        children: content of the section; plain text is escaped.
        about: line below the heading.
    """
    return Markup("<section><h2>{}</h2>{}{}</section>").format(
        title,
        Markup('<p class="about">{}</p>').format(about) if about else "",
        Markup("").join(children),
    )


def columns(children: Iterable[Markup]) -> Markup:
    """Arrange children in two columns, or in one on a narrow screen."""
    return Markup('<div class="columns">{}</div>').format(Markup("\n").join(children))


@cache
def _style() -> Markup:
    return Markup("\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8"))


@cache
def _policy() -> Markup:
    """Return the Content-Security-Policy: the browser fetches and runs nothing.

    Plots carry style attributes. `style-src` is the fallback for browsers without
    `style-src-elem` and `style-src-attr`.
    """
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return Markup(
        "default-src 'none'; style-src 'unsafe-inline'; style-src-elem 'sha256-{}'; "
        "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ).format(digest)
