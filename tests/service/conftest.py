"""A browser, and the services that most tests share; each started once."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, OpenPage, PageLog, wait
from checkpoints import PathOf
from peer_service import TINY_MAX_LENGTH, Served
from playground import LINES, READY
from playwright.sync_api import Browser, Page, sync_playwright
from preloaded import run_service
from scheduling import GROUPS, find_group
from waiting import PATIENCE_S

from rm_core import seeds_dir
from serve.client.integrations import base


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need Ray, and refuse a test outside the group of its service."""
    group = find_group(item.path.name)
    for fixture in {*GROUPS}.intersection(getattr(item, "fixturenames", ())):
        if group != fixture:
            message = f"{item.nodeid} uses `{fixture}`: list its file there in tests/scheduling.py"
            raise pytest.UsageError(message)
    if group == "service":
        item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def served(checkpoint_of: PathOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of several models without Ray, for all tests that are not about its start."""
    folders = {"llama": checkpoint_of("llama-v0.2"), "tiny": checkpoint_of("qwen3")}
    models = [
        {"name": "demo"},
        {"name": str(folders["llama"]), "alias": "llama"},
        {"name": str(folders["tiny"]), "alias": "tiny", "max_length": TINY_MAX_LENGTH},
        {"name": str(seeds_dir() / "demo"), "alias": "short", "max_length": 64},
    ]
    config = tmp_path_factory.mktemp("served") / "models.yaml"
    config.write_text(json.dumps({"models": models, "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        yield Served(url, {"demo": seeds_dir() / "demo", **folders})


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the demo model alone, which requests need not name.

    It keeps no rewards, so that answers do not depend on earlier tests.
    """
    config = tmp_path_factory.mktemp("demo") / "models.yaml"
    config.write_text("models: [{name: demo, device: cpu, cache_bytes: 0}]")
    with run_service("--config", str(config)) as url:
        yield url


@pytest.fixture
def playground_url(served: Served) -> str:
    return served.url


@pytest.fixture(scope="module")  # while Playwright runs, its thread can run no other event loop
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page_log() -> PageLog:
    """What the pages of a test complain of and request."""
    return PageLog()


@pytest.fixture
def open_page(browser: Browser, page_log: PageLog) -> Iterator[OpenPage]:
    with contextlib.ExitStack() as stack:

        def open_in_context(url: str, width: int = 1280, *, dark: bool = False) -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": 900},
                is_mobile=width < 600,
                color_scheme="dark" if dark else "light",
                permissions=["clipboard-read", "clipboard-write"],
            )
            stack.callback(context.close)
            context.set_default_timeout(1000 * PATIENCE_S)
            page_log.record(context)
            page = context.new_page()
            page.goto(url)
            return page

        yield open_in_context


@pytest.fixture
def page(open_page: OpenPage, page_log: PageLog, playground_url: str) -> Iterator[Page]:
    """The playground, just opened; it must not complain, nor request from another host."""
    page = open_page(playground_url)
    wait(page, READY)
    yield page
    # What is not waited for any more is given up.
    assert {*page_log.complaints} <= {"not loaded: net::ERR_ABORTED"}
    hosts = {re.sub(r"^(http://[^/]+|data|blob).*", r"\1", url) for url in page_log.requests}
    assert hosts <= {playground_url, "data", "blob"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mixed.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path / "mixed.jsonl"


@pytest.fixture
def chosen(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Settings of our reward functions."""
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", served.url)
    monkeypatch.setenv("SKYREWARD_CLIENT_MODEL", "llama")
    base._build_reward_client.cache_clear()
    yield monkeypatch
    base.get_reward_client().client.close()
    base._build_reward_client.cache_clear()
