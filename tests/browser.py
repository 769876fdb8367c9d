"""Drives a browser as a visitor does: clicks, keys, dropped files, visible text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from chromium import Chromium
from peers import peer_path
from waiting import PATIENCE_S

_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "Space": ("Space", 32, " "),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
}
CTRL, SHIFT = 2, 8


class Visitor(Chromium):
    """Acts on the page through the browser's input events, as a mouse and a keyboard do."""

    def visit(self, url: str, width: int = 1280, *, dark: bool = False, height: int = 900) -> None:
        """Open a URL, and return once the page is loaded."""
        self.complaints.clear()
        self.asked.clear()
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.run("window.isLeft = true")
        self._call("Page.navigate", url=url)
        self.wait("!window.isLeft && document.readyState == 'complete'")

    def wait(self, condition: str) -> None:
        """Return once an expression is true; fail after a timeout."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"not true in time: {condition}\n{self.complaints}"
            time.sleep(0.03)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, which must be visible and not covered."""
        quoted = json.dumps(selector)
        self.wait(f"document.querySelector({quoted})")
        place = self.run(f"""(() => {{
            const element = document.querySelector({quoted});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const {{x, y, width, height}} = element.getBoundingClientRect();
            const at = [x + width / 2, y + height / 2];
            const found = document.elementFromPoint(...at);
            return element.contains(found) || found?.contains(element) ? at : null;
        }})()""")
        assert place, f"{selector} cannot be clicked"
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                type=kind, x=place[0], y=place[1], button="left", clickCount=1,
            )  # fmt: skip

    def write(self, text: str) -> None:
        """Type a text into the focused element."""
        self._call("Input.insertText", text=text)

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys, one after another."""
        for key in keys:
            name, number, text = _KEYS[key]
            about: dict[str, Any] = {
                "key": text if key == "Space" else name,
                "code": name,
                "windowsVirtualKeyCode": number,
                "modifiers": modifiers,
            }
            self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
            self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def choose(self, selector: str, value: str) -> None:
        """Select an option of a list by keyboard."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        names = self.run(
            f"[...document.querySelector({json.dumps(selector)}).options].map(o => o.value)"
        )
        now = self.run(f"document.querySelector({json.dumps(selector)}).selectedIndex")
        steps = names.index(value) - now
        self.press(*["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps))

    def drop(self, file: Path, selector: str) -> None:
        """Drag a file from outside the browser onto the visible part of an element."""
        x, y = self.run(f"""(() => {{
            const {{x, y, width, height}} = document.querySelector({json.dumps(selector)})
                .getBoundingClientRect();
            return [x + width / 2, Math.min(Math.max(y, 0) + height / 2, innerHeight / 2)];
        }})()""")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def cut_off(self, *, yes: bool) -> None:
        """Disconnect the network, or reconnect it."""
        self._call(
            "Network.emulateNetworkConditions",
            offline=yes, latency=0, downloadThroughput=-1, uploadThroughput=-1,
        )  # fmt: skip

    def allow_copying(self) -> None:
        """Allow the page to use the clipboard."""
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self._call("Browser.grantPermissions", permissions=permissions)

    def save_into(self, folder: Path) -> None:
        """Set the folder for downloads."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def shown(self, selector: str = "body") -> str:
        """Return the visible text of an element, in one line."""
        text = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return " ".join(str(text).split())

    def focused(self) -> str:
        """Return the id of the focused element, or its label or tag."""
        return str(
            self.run(
                "(({id, tagName}) => id || document.activeElement.ariaLabel || tagName)"
                "(document.activeElement)"
            )
        )

    def violations(self) -> list[str]:
        """Return the accessibility violations that axe-core finds on the page."""
        # In an isolated world: the content security policy of the page allows no other scripts.
        frame = self._call("Page.getFrameTree")["frameTree"]["frame"]["id"]
        world = self._call("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
        script = peer_path("axe_playwright_python/axe.min.js").read_text()
        run = (
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa',"
            " 'best-practice']}).then(r => r.violations.map(v => v.id + ': ' + v.help + ' '"
            " + v.nodes.map(n => n.target + ' ' + n.failureSummary).join(' | ')))"
        )
        answer = self._call(
            "Runtime.evaluate",
            expression=f"{script};\n{run}",
            contextId=world,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer
        return list(answer["result"]["value"])
