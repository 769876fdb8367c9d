"""The playground of a service with keys: its login page, and the storage of the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import OpenPage, PageLog, drop, find_violations, get_focus, get_text, wait
from fakes import FakeBackend
from fastapi import FastAPI
from middleware_harness import KEY, OTHER_KEY, live
from playwright.sync_api import Page

from rm_core import OverloadedError
from serve.api.app import create_app
from serve.api.middleware.access import KeyRing
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

MESSAGE = "document.querySelector('#message').textContent"
OPEN = "document.querySelector('#model')?.value"
EXAMPLE = "[data-example=fact-capital-01]"


class KeyedService:
    """A service with a key, in this process."""

    def __init__(self) -> None:
        settings = Settings.load(api_keys=[KEY])
        self.backend = FakeBackend()
        service = ScoringService([(settings.models[0], self.backend)], settings)
        self.app: FastAPI = create_app(service, settings)
        self.url = ""


@pytest.fixture
def keyed() -> Iterator[KeyedService]:
    keyed = KeyedService()
    with live(keyed.app) as server:
        keyed.url = server.url
        yield keyed


@pytest.fixture
def page(keyed: KeyedService, open_page: OpenPage) -> Page:
    return open_page(keyed.url)


def enter(page: Page, key: str = KEY) -> None:
    page.evaluate("document.querySelector('#key').select()")
    page.keyboard.insert_text(key)
    page.keyboard.press("Enter")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_login_page_is_accessible(
    open_page: OpenPage, keyed: KeyedService, width: int, dark: bool
) -> None:
    page = open_page(keyed.url, width, dark=dark)
    assert get_focus(page) == "key"
    assert find_violations(page) == []
    enter(page, "wrong-wrong-wrong")
    wait(page, MESSAGE)
    assert find_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_wrong_key_is_reported_and_not_stored(page: Page) -> None:
    for key, message in (
        ("wrong-wrong-wrong", "is not valid"),
        ("schlüssel-schlüssel", "is not valid"),
        ("钥匙钥匙钥匙钥匙", "printable ASCII"),
    ):
        enter(page, key)
        wait(page, f"{MESSAGE}.includes('{message}')")
        assert get_focus(page) == "key"
        assert page.evaluate("sessionStorage.length") == 0


def test_right_key_opens_playground_and_scores(page: Page, page_log: PageLog) -> None:
    enter(page)
    wait(page, OPEN)
    page_log.complaints.clear()
    page.click(EXAMPLE)
    page.wait_for_selector("#readout")
    assert find_violations(page) == []
    assert page_log.complaints == []  # the policy of the login page allows the whole playground
    assert page.evaluate("document.querySelectorAll('.bars .reward').length") == 2
    assert "$SKYREWARD_API_KEY" in get_text(page, "#code")
    assert page.evaluate("document.querySelector('#docs').hidden") is True
    shown = "document.documentElement.outerHTML + location + JSON.stringify(localStorage)"
    assert KEY not in page.evaluate(shown)
    assert not any(KEY in url for url in page_log.requests)
    assert page.evaluate("document.cookie") == ""


def test_key_is_stored_in_tab_until_forgotten(page: Page, keyed: KeyedService) -> None:
    enter(page)
    wait(page, OPEN)
    page.goto(keyed.url)
    wait(page, OPEN)
    page.click("#forget")
    page.wait_for_selector("#key")
    assert page.evaluate("sessionStorage.length") == 0
    page.goto(keyed.url)
    assert page.evaluate("Boolean(document.querySelector('#key'))")


def test_revoked_key_is_asked_for_again(page: Page, keyed: KeyedService) -> None:
    enter(page)
    wait(page, OPEN)
    keyed.app.state.keys = KeyRing([(OTHER_KEY, "")])
    page.click(EXAMPLE)
    page.wait_for_selector("#alert button")
    assert "no longer valid" in get_text(page, "#alert")
    assert page.evaluate("document.querySelector('.turn textarea').value")  # nothing typed is lost
    page.click("#alert button")
    page.wait_for_selector("#key")
    enter(page, OTHER_KEY)
    wait(page, OPEN)


def test_revoked_stored_key_leads_to_login_page(page: Page, keyed: KeyedService) -> None:
    enter(page)
    wait(page, OPEN)
    keyed.app.state.keys = KeyRing([(OTHER_KEY, "")])
    page.goto(keyed.url)
    wait(page, MESSAGE)
    assert "is not valid" in get_text(page, "#message")
    assert page.evaluate("sessionStorage.length") == 0


def test_overload_is_reported_and_file_scoring_retries(
    page: Page, keyed: KeyedService, tmp_path: Path
) -> None:
    enter(page)
    wait(page, OPEN)
    keyed.backend.failure = OverloadedError("too much waits")
    page.click(EXAMPLE)
    wait(page, "document.querySelector('#alert').textContent")
    assert "Try again in" in get_text(page, "#alert")
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    drop(page, tmp_path / "one.jsonl", "body")
    page.wait_for_selector("#stop")
    keyed.backend.failure = None
    page.wait_for_selector("#save")
    assert "Errors 0" in get_text(page, "#job")
