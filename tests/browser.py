"""What tests of pages need beside Playwright's own functions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from peers import peer_path
from playwright.sync_api import BrowserContext, Error, Page
from waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_AXE = """axe.run(document, {runOnly: [
    'wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice',
]}).then(result => result.violations.map(found =>
    found.id + ': ' + found.help + ' '
    + found.nodes.map(node => node.target + ' ' + node.failureSummary).join(' | ')))"""
_FOCUSED = """(({id, ariaLabel, tagName}) => id || ariaLabel || tagName)(document.activeElement)"""


class OpenPage(Protocol):
    """Opens a URL in a browser context of its own."""

    def __call__(self, url: str, width: int = 1280, *, dark: bool = False) -> Page: ...


class PageLog:
    """What the pages of a browser context complain of and request.

    Attributes:
        complaints: console messages, exceptions and failed loads.
        requests: URLs.
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def record(self, context: BrowserContext) -> None:
        context.on("console", lambda message: self.complaints.append(message.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on(
            "requestfailed",
            lambda request: self.complaints.append(f"not loaded: {request.failure}"),
        )
        context.on("request", lambda request: self.requests.append(request.url))


def wait(page: Page, condition: str) -> None:
    """Return once an expression is true.

    Not by `Page.wait_for_function`, whose second try needs a policy that allows `eval`.
    """
    expression = f"Boolean({condition})"

    def is_true() -> bool:
        try:
            return bool(page.evaluate(expression))
        except Error as error:
            if "context was destroyed" in error.message:  # the page is left just now
                return False
            raise

    until(is_true, f"not true in time: {condition}")


def get_text(page: Page, selector: str = "body") -> str:
    """Return the visible text of an element, in one line."""
    return " ".join(page.inner_text(selector).split())


def get_focus(page: Page) -> str:
    """Return the id of the focused element, or its label or tag."""
    return str(page.evaluate(_FOCUSED))


def press(page: Page, *keys: str) -> None:
    """Press keys, one after another."""
    for key in keys:
        page.keyboard.press(key)


def choose(page: Page, selector: str, value: str) -> None:
    """Select an option of a list by keyboard."""
    page.focus(selector)
    names, index = page.eval_on_selector(
        selector, "list => [[...list.options].map(option => option.value), list.selectedIndex]"
    )
    steps = names.index(value) - index
    press(page, *["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps))


def drop(page: Page, file: Path, selector: str) -> None:
    """Drag a file from outside the browser onto the visible part of an element."""
    x, y = page.eval_on_selector(
        selector,
        """element => {
            const {x, y, width, height} = element.getBoundingClientRect();
            return [x + width / 2, Math.min(Math.max(y, 0) + height / 2, innerHeight / 2)];
        }""",
    )
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": x, "y": y, "data": data}
        session.send("Input.dispatchDragEvent", event)
    session.detach()


def finish_animations(page: Page) -> None:
    """Return once nothing moves or fades on the page."""
    page.evaluate("Promise.all(document.getAnimations().map(one => one.finished)).then(() => {})")


def find_violations(page: Page) -> list[str]:
    """Return the accessibility violations that axe-core finds on the page."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(peer_path("axe_playwright_python/axe.min.js").read_text(encoding="utf-8"))
    return list(page.evaluate(_AXE))
