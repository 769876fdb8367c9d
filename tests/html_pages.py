"""What every page of HTML that we write must be: whole, self-contained, in its own colours."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "wbr"}
# Addresses in text are no requests: only these attributes and rules fetch something.
_FETCHING = re.compile(
    r"<(?:script|link|img|iframe|object|embed|image|use|base)\b|@import|url\(|\bsrc\s*=|xlink:"
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        assert not any(name.startswith("on") for name in named), named
        if tag == "svg":
            self.pictures.append(named)


def check_page(page: str) -> None:
    """Every tag is closed, nothing is fetched, ids are unique, pictures say what they show."""
    # The policy has to come before all that it is about.
    policy = re.search(
        r'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="([^"]*)">',
        page,
    )
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src-elem 'sha256-{digest}'" in policy[1]
    assert "script" not in policy[1]
    reader = _Reader()
    reader.feed(page)
    assert not reader.open
    markup = re.sub(r">[^<]*<", "><", page.split("</style>")[1])
    assert not _FETCHING.search(markup)
    assert not re.search(r"https?:", re.sub(r">[^<]*<", "><", page))
    assert not [name for name, number in Counter(reader.ids).items() if number > 1]
    for picture in reader.pictures:
        assert picture["role"] == "img"
        assert picture["aria-label"]
    # A table that scrolls is reached by the keyboard, and an empty cell is no head of a column.
    assert not re.search(r'class="wide">|<th[^>]*></th>', page)
    # Else the page would not follow the reader's choice of light or dark.
    colours = re.findall(r"#[0-9a-f]{3,8}\b|\brgba?\(", "".join(re.findall(r'style="[^"]*"', page)))
    assert not colours


def text_of(page: str) -> str:
    """What a person reads, in one line."""
    reader = _Reader()
    reader.feed(page)
    return " ".join(" ".join(reader.text).split())
