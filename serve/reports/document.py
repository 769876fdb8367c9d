"""The shell of a page: head, style, heading, and the parts below one another or side by side."""

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
{parts}
</main>
</body>
</html>
""")


def render_document(title: str, sections: Iterable[Markup], about: str = "") -> str:
    """The whole page.

    Args:
        title: its heading, and the name of its tab.
        parts: from top to bottom.
        about: a line under the heading.
    """
    return str(
        _SHELL.format(
            title=title,
            style=_style(),
            policy=_policy(),
            about=Markup('<p class="about">{}</p>').format(about) if about else "",
            parts=Markup("\n").join(sections),
        )
    )


def section(title: str, *children: Markup | str, about: str = "") -> Markup:
    """A frame with a heading.

    Args:
        title: the heading.
        parts: what it holds; what is no markup is escaped.
        about: a line under the heading.
    """
    return Markup("<section><h2>{}</h2>{}{}</section>").format(
        title,
        Markup('<p class="about">{}</p>').format(about) if about else "",
        Markup("").join(children),
    )


def columns(children: Iterable[Markup]) -> Markup:
    """Parts in two columns where there is room, one below another where there is not."""
    return Markup('<div class="columns">{}</div>').format(Markup("\n").join(children))


@cache
def _style() -> Markup:
    return Markup("\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8"))


@cache
def _policy() -> Markup:
    """The browser fetches and runs nothing, whatever might ever get into a page.

    Drawings have styles of their own as attributes. `style-src` is for browsers that do not know
    the two finer directives.
    """
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return Markup(
        "default-src 'none'; style-src 'unsafe-inline'; style-src-elem 'sha256-{}'; "
        "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ).format(digest)
