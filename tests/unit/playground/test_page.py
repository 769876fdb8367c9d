"""The playground and login pages: complete, loading nothing, and allowed by their own policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from fakes import FakeBackend
from fastapi.testclient import TestClient
from middleware_harness import KEY

from rm_core import seeds_dir
from serve.api.app import create_app
from serve.api.playground.page import build_login_page, build_page_headers, build_playground_page
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

PAGES = {"playground": build_playground_page, "login": build_login_page}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
RIGHT = {"Authorization": f"Bearer {KEY}"}


class Reader(HTMLParser):
    """Collects the ids, tags, scripts, styles and data of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self._section: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append((tag, named))
        self.ids += [str(named["id"])] if "id" in named else []
        is_data = named.get("type") == "application/json"
        self._section = "json" if is_data else tag if tag in self.inside else None

    def handle_endtag(self, tag: str) -> None:
        self._section = None

    def handle_data(self, data: str) -> None:
        if self._section:
            self.inside[self._section].append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def policy() -> dict[str, list[str]]:
    text = build_page_headers()["Content-Security-Policy"]
    directives = [directive.split() for directive in text.split("; ")]
    return {name: sources for name, *sources in directives}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("name", PAGES)
def test_csp_allows_exactly_the_inline_sources(name: str) -> None:
    reader, allowed = read(PAGES[name]()), policy()
    (script,), (style,) = reader.inside["script"], reader.inside["style"]
    assert digest(script) in allowed["script-src"]
    assert allowed["style-src"] == [digest(style)]
    assert len(allowed["script-src"]) == len(PAGES)
    assert allowed["default-src"] == allowed["base-uri"] == ["'none'"]
    assert allowed["frame-ancestors"] == allowed["form-action"] == ["'none'"]
    assert allowed["connect-src"] == ["'self'"]
    assert "unsafe" not in str(allowed)


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_nothing_and_has_no_inline_handlers(name: str) -> None:
    page = PAGES[name]()
    reader = read(page)
    for tag, attributes in reader.tags:
        assert "style" not in attributes, tag
        assert not [a for a in attributes if a.startswith("on")], tag
        assert "src" not in attributes
        if tag == "link":
            assert str(attributes["href"]).startswith("data:")
    code = "".join(reader.inside["script"] + reader.inside["style"])
    assert "/*script*/" not in page
    assert "/*style*/" not in page
    # SVG's namespace is not a URL to load.
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", code)
    assert not re.search(r"@import|url\(|import\(|\nimport", code)
    assert [i for i, number in Counter(reader.ids).items() if number > 1] == []


def test_every_field_has_label_and_aria_ids_exist() -> None:
    reader = read(build_playground_page())
    named = {attributes.get("for") for tag, attributes in reader.tags if tag == "label"}
    fields = [a for tag, a in reader.tags if tag in ("select", "textarea", "input")]
    assert len(fields) > 4
    assert {a["id"] for a in fields} <= named
    referenced = [
        name
        for _, a in reader.tags
        for key in ("aria-labelledby", "aria-describedby", "aria-controls", "for")
        for name in (a.get(key) or "").split()
    ]
    assert set(referenced) <= set(reader.ids)


def test_examples_are_the_sample_pairs() -> None:
    (text,) = read(build_playground_page()).inside["json"]
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(text) == [json.loads(line) for line in lines]
    assert "<" not in text


def test_scripts_use_only_existing_ids() -> None:
    reader = read(build_playground_page())
    (script,) = reader.inside["script"]
    created = set(re.findall(r'\bid: "([\w-]+)"', script))
    used = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert used <= {*reader.ids, *created}


def test_page_files_are_packaged() -> None:
    """A wheel contains the files that git does not ignore."""
    files = [
        p
        for p in (ROOT / "serve" / "api" / "playground").rglob("*")
        if p.suffix in (".js", ".css", ".html")
    ]
    assert len(files) > 10
    for file in files:
        assert len(file.read_text().splitlines()) <= 300, file
        ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert ignored.returncode == 1, file
    names = re.findall(
        r'"(\w+)"', (ROOT / "serve/api/playground/page.py").read_text().split("_SCRIPTS")[1]
    )
    assert {p.stem for p in files if p.parent.name == "script"} <= set(names)


def client_of(*keys: str) -> TestClient:
    settings = Settings.load(api_keys=keys)
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    return TestClient(app, follow_redirects=False)


def test_playground_is_open_without_keys() -> None:
    with client_of() as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.text == build_playground_page()
        assert answer.headers.get_list("content-type") == ["text/html; charset=utf-8"]
        for name, value in build_page_headers().items():
            assert answer.headers[name] == value
        assert "/" not in client.get("/openapi.json").json()["paths"]


def test_missing_key_gives_browsers_login_page_and_programs_error() -> None:
    with client_of(KEY) as client:
        for headers in (BROWSER, {**BROWSER, "Authorization": f"Bearer {KEY}x"}):
            login = client.get("/", headers=headers)
            assert login.status_code == 401
            assert login.headers["www-authenticate"] == "Bearer"
            assert login.headers["content-security-policy"] == policy_text()
            assert login.headers["cache-control"] == "no-store"
            assert login.text == build_login_page()
        assert client.get("/").json()["error"]["code"] == "invalid_api_key"
        for method, path in (("POST", "/v1/score"), ("GET", "/v1/models"), ("GET", "/docs")):
            refused = client.request(method, path, headers=BROWSER)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        opened = client.get("/", headers={**BROWSER, **RIGHT})
        assert opened.status_code == 200
        assert opened.text == build_playground_page()


def policy_text() -> str:
    return build_page_headers()["Content-Security-Policy"]


def test_login_page_reveals_nothing_about_service() -> None:
    text = build_login_page()
    (script,) = read(text).inside["script"]
    assert "/v1/" not in text
    assert "demo" not in text
    assert len(script) < 3_000
