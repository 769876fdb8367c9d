"""The playground of a service with keys: its login page, and the storage of the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visitor
from chromium import PROGRAM
from fakes import FakeBackend
from fastapi import FastAPI
from middleware_harness import KEY, OTHER_KEY, live

from rm_core import OverloadedError
from serve.api.app import create_app
from serve.api.middleware.api_keys import KeyRing
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

MESSAGE = "document.querySelector('#message').textContent"
OPEN = "document.querySelector('#model')?.value"
EXAMPLE = "[data-example=fact-capital-01]"


class Served:
    """A service with a key, in this process."""

    def __init__(self) -> None:
        settings = Settings.load(api_keys=[KEY])
        self.backend = FakeBackend()
        service = ScoringService([(settings.models[0], self.backend)], settings)
        self.app: FastAPI = create_app(service, settings)
        self.url = ""


@pytest.fixture
def served(browser: Visitor) -> Iterator[Served]:
    served = Served()
    with live(served.app) as server:
        served.url = server.url  # session storage is separate for each port
        browser.visit(served.url)
        yield served
        browser.run("sessionStorage.clear()")
        browser.visit("about:blank")


def enter(browser: Visitor, key: str = KEY) -> None:
    browser.run("document.querySelector('#key').select()")
    browser.write(key)
    browser.press("Enter")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_login_page_is_accessible(browser: Visitor, served: Served, width: int, dark: bool) -> None:
    browser.visit(served.url, width, dark=dark)
    assert browser.focused() == "key"
    assert browser.violations() == []
    enter(browser, "wrong-wrong-wrong")
    browser.wait(MESSAGE)
    assert browser.violations() == []
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_wrong_key_is_reported_and_not_stored(browser: Visitor, served: Served) -> None:
    for key, message in (
        ("wrong-wrong-wrong", "is not valid"),
        ("schlüssel-schlüssel", "is not valid"),
        ("钥匙钥匙钥匙钥匙", "printable ASCII"),
    ):
        enter(browser, key)
        browser.wait(f"{MESSAGE}.includes('{message}')")
        assert browser.focused() == "key"
        assert browser.run("sessionStorage.length") == 0


def test_right_key_opens_playground_and_scores(browser: Visitor, served: Served) -> None:
    enter(browser)
    browser.wait(OPEN)
    browser.complaints.clear()
    browser.click(EXAMPLE)
    browser.wait("document.querySelector('#readout')")
    assert browser.violations() == []
    assert browser.complaints == []  # the policy of the login page allows the whole playground
    assert browser.run("document.querySelectorAll('.bars .reward').length") == 2
    assert "$SKYREWARD_API_KEY" in browser.shown("#code")
    assert browser.run("document.querySelector('#docs').hidden") is True
    page = "document.documentElement.outerHTML + location + JSON.stringify(localStorage)"
    assert KEY not in browser.run(page)
    assert not any(KEY in address for address in browser.asked)
    assert browser.run("document.cookie") == ""


def test_key_is_stored_in_tab_until_forgotten(browser: Visitor, served: Served) -> None:
    enter(browser)
    browser.wait(OPEN)
    browser.visit(served.url)
    browser.wait(OPEN)
    browser.click("#forget")
    browser.wait("document.querySelector('#key')")
    assert browser.run("sessionStorage.length") == 0
    browser.visit(served.url)
    assert browser.run("Boolean(document.querySelector('#key'))")


def test_revoked_key_is_asked_for_again(browser: Visitor, served: Served) -> None:
    enter(browser)
    browser.wait(OPEN)
    served.app.state.keys = KeyRing([(OTHER_KEY, "")])
    browser.click(EXAMPLE)
    browser.wait("document.querySelector('#alert button')")
    assert "no longer valid" in browser.shown("#alert")
    assert browser.run("document.querySelector('.turn textarea').value")  # nothing typed is lost
    browser.click("#alert button")
    browser.wait("document.querySelector('#key')")
    enter(browser, OTHER_KEY)
    browser.wait(OPEN)


def test_revoked_stored_key_leads_to_login_page(browser: Visitor, served: Served) -> None:
    enter(browser)
    browser.wait(OPEN)
    served.app.state.keys = KeyRing([(OTHER_KEY, "")])
    browser.visit(served.url)
    browser.wait(MESSAGE)
    assert "is not valid" in browser.shown("#message")
    assert browser.run("sessionStorage.length") == 0


def test_overload_is_reported_and_file_scoring_retries(
    browser: Visitor, served: Served, tmp_path: Path
) -> None:
    enter(browser)
    browser.wait(OPEN)
    served.backend.failure = OverloadedError("too much waits")
    browser.click(EXAMPLE)
    browser.wait("document.querySelector('#alert').textContent")
    assert "Try again in" in browser.shown("#alert")
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    browser.drop(tmp_path / "one.jsonl", "body")
    browser.wait("document.querySelector('#stop')")
    served.backend.failure = None
    browser.wait("document.querySelector('#save')")
    assert "Errors 0" in browser.shown("#job")
