"""The playground and its login page, each a single page with inline style and scripts.

A browser sends no API key when it loads a linked file, so a page that requires a key cannot load
files. Both pages are therefore assembled here, once, from the files in this folder. They load
nothing, and their content security policy allows exactly these styles and scripts, by digest.

A browser without a key gets the login page. The login page asks for a key, fetches the playground
with it, and replaces its own document by the playground. Both pages are then subject to one policy,
which must allow the scripts of both.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from rm_core import seeds_dir
from serve.csp import format_csp, hash_inline_source

_FOLDER = Path(__file__).parent
# The scripts are joined in this order and share one scope: each may use names of earlier scripts.
_SCRIPTS = (
    "dom", "api", "shapes", "images", "editor", "judge", "results", "steps", "rendered",
    "snippet", "histogram", "table", "file", "main",
)  # fmt: skip


@functools.cache
def build_playground_page() -> str:
    """Return the HTML of the playground. Its only data are the sample pairs."""
    return _fill_template("index.html", _script(), examples=_examples())


@functools.cache
def build_login_page() -> str:
    """Return the HTML of the login page, which reveals nothing about the service."""
    return _fill_template("login.html", _read("login.js"))


@functools.cache
def build_page_headers() -> Mapping[str, str]:
    """Return the headers of both pages, including the content security policy."""
    scripts = " ".join(hash_inline_source(text) for text in (_script(), _read("login.js")))
    policy = {
        "script-src": scripts,
        "style-src": hash_inline_source(_style()),
        "img-src": "data:",
        "connect-src": "'self'",
    }
    return {
        "Content-Security-Policy": format_csp(policy),
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",  # the content of this URL depends on the key
        "Referrer-Policy": "no-referrer",
    }


def _fill_template(name: str, script: str, examples: str = "") -> str:
    page = _read(name)
    for placeholder, text in (("style", _style()), ("examples", examples), ("script", script)):
        page = page.replace(f"/*{placeholder}*/", text)
    return page


def _style() -> str:
    return _read("style.css")


@functools.cache
def _script() -> str:
    return "".join(_read(f"script/{name}.js") for name in _SCRIPTS)


def _examples() -> str:
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    text = json.dumps([json.loads(line) for line in lines], ensure_ascii=False)
    return text.replace("<", r"\u003c")  # an end tag in an example must not end the script


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
