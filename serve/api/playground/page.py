"""The playground and its door, each a single page with its style and its scripts inside.

A browser sends no key along when it follows an address, so a page behind keys cannot load files of
its own. Both pages are therefore put together here, once, out of the files beside this one. They
load nothing, and their policy lets exactly these styles and scripts run, by their digests.

Who comes without a key gets the door. It asks for one, fetches the playground with it, and puts
that in its own place; so both are under the one policy, and it must allow what is in either.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from rm_core import seeds_dir

_FOLDER = Path(__file__).parent
# One scope: each may use what stands in those before it.
_SCRIPTS = (
    "dom", "api", "shapes", "editor", "results", "rendered", "snippet", "histogram", "table",
    "file", "main",
)  # fmt: skip


@functools.cache
def build_playground_page() -> str:
    """The page itself. It has no data but the sample pairs."""
    return _fill_template("index.html", _script(), examples=_examples())


@functools.cache
def build_login_page() -> str:
    """The page that asks for a key; it tells nothing of the service."""
    return _fill_template("login.html", _read("login.js"))


@functools.cache
def build_page_headers() -> Mapping[str, str]:
    """The headers that both pages come with, the content security policy among them."""
    scripts = " ".join(hash_inline_source(text) for text in (_script(), _read("login.js")))
    policy = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": hash_inline_source(_style()),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": format_csp(policy),
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",  # one address, and what it gives depends on the key
        "Referrer-Policy": "no-referrer",
    }


def hash_inline_source(text: str) -> str:
    """A script or style that stands in a page, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def format_csp(policy: Mapping[str, str]) -> str:
    """A content security policy as a header has it."""
    return "; ".join(f"{name} {value}" for name, value in policy.items())


def _fill_template(name: str, script: str, examples: str = "") -> str:
    page = _read(name)
    for place, text in (("style", _style()), ("examples", examples), ("script", script)):
        page = page.replace(f"/*{place}*/", text)
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
