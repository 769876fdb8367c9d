"""`/docs` and `/redoc` in a real browser: their own scripts run, and no others."""

from __future__ import annotations

import httpx
import pytest
from browser import OpenPage, PageLog, get_text, wait

SHOWN = {
    "/docs": "document.querySelectorAll('.opblock').length > 12",
    "/redoc": "document.querySelectorAll('[data-section-id]').length > 12",
}
# Redoc's own, which the policy blocks.
LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"


@pytest.mark.parametrize("path", SHOWN)
def test_its_scripts_show_every_route(
    open_page: OpenPage, page_log: PageLog, playground_url: str, path: str
) -> None:
    page = open_page(playground_url + path)
    wait(page, SHOWN[path])
    # The policy also complains on the console of whatever it blocks.
    complaints = [c for c in page_log.complaints if LOGO not in c and c != "not loaded: csp"]
    assert complaints == []
    local = (playground_url, "data:", "blob:", LOGO)
    assert all(url.startswith(local) for url in page_log.requests)


def test_a_request_can_be_tried_out(open_page: OpenPage, playground_url: str) -> None:
    page = open_page(playground_url + "/docs")
    page.click("[id$=health_health_get] .opblock-summary")
    page.click(".try-out__btn")
    page.click(".execute")
    page.wait_for_selector(".live-responses-table .response-col_status")
    assert "200" in get_text(page, ".live-responses-table .response")


@pytest.mark.parametrize("path", SHOWN)
def test_a_script_that_was_put_in_does_not_run(
    open_page: OpenPage, playground_url: str, path: str
) -> None:
    page = open_page(playground_url + path)
    page.evaluate(
        "(() => { const script = document.createElement('script');"
        " script.textContent = 'window.isFooled = true'; document.body.append(script); })()"
    )
    assert page.evaluate("Boolean(window.isFooled)") is False
    policy = httpx.get(playground_url + path, trust_env=False).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
