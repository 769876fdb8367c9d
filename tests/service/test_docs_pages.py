"""`/docs` and `/redoc` in a real browser: their own scripts run, and no others."""

from __future__ import annotations

import httpx
import pytest
from browser import Visitor
from chromium import PROGRAM

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

SHOWN = {
    "/docs": "document.querySelectorAll('.opblock').length > 12",
    "/redoc": "document.querySelectorAll('[data-section-id]').length > 12",
}


@pytest.mark.parametrize("path", SHOWN)
def test_its_scripts_show_every_route(browser: Visitor, playground_url: str, path: str) -> None:
    browser.visit(playground_url + path)
    browser.wait(SHOWN[path])
    assert browser.complaints == []
    assert all(a.startswith((playground_url, "data:", "blob:")) for a in browser.asked)


def test_a_request_can_be_tried_out(browser: Visitor, playground_url: str) -> None:
    browser.visit(playground_url + "/docs")
    browser.click("[id$=health_health_get] .opblock-summary")
    browser.click(".try-out__btn")
    browser.click(".execute")
    browser.wait("document.querySelector('.live-responses-table .response-col_status')")
    assert "200" in browser.shown(".live-responses-table .response")


@pytest.mark.parametrize("path", SHOWN)
def test_a_script_that_was_put_in_does_not_run(
    browser: Visitor, playground_url: str, path: str
) -> None:
    browser.visit(playground_url + path)
    browser.run(
        "(() => { const script = document.createElement('script');"
        " script.textContent = 'window.isFooled = true'; document.body.append(script); })()"
    )
    assert browser.run("Boolean(window.isFooled)") is False
    policy = httpx.get(playground_url + path, trust_env=False).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
