"""Rendering of a page from its Jinja2 template."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serve.csp import hash_inline_source
from serve.reports.format import format_number, format_percent, format_points, format_quantity

_TEMPLATES = Path(__file__).with_name("templates")
# Control characters and lone surrogates, which browsers would replace or drop.
_INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_page(template: Path, **context: Any) -> str:
    """Render a template that extends `page.html.j2`; equal arguments give equal text."""
    page = get_environment(template.parent).get_template(template.name).render(context)
    return _INVALID.sub("\N{REPLACEMENT CHARACTER}", page)


@cache
def get_environment(folder: Path = _TEMPLATES) -> Environment:
    """Return the environment of the templates of a folder and of this package.

    Filters: `number`, `points`, `percent` and `quantity` of `serve.reports.format`, and
    `csp_source` of an inline style.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "points": format_points,
        "percent": format_percent,
        "quantity": format_quantity,
        "csp_source": hash_inline_source,
    }
    return environment
