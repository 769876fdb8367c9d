"""Selectors and helpers for tests of the playground, and a file to drop on it."""

from __future__ import annotations

from typing import Any

import httpx
from browser import wait
from playwright.sync_api import Page
from waiting import PATIENCE_S

CAPITAL = "fact-capital-01"
READY = "document.querySelector('#model').value"
RENDERED = "#readout"
DONE = "#save"
LINES = [
    '{"id": 1, "prompt": "2+2?", "chosen": "4", "rejected": "I would rather not say."}',
    "",
    '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}',
    "no JSON",
    '{"prompt": "Hello!", "responses": ["Good morning!", 5, "No."], "kept": [1]}',
    '{"messages": [{"role": "user", "content": "2+2?"}]}',
    '{"text": "of no known shape"}',
]


def start(page: Page, example: str = CAPITAL) -> None:
    page.click(f"[data-example={example}]")
    wait(page, "!document.querySelector('#scored-text').hidden")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def rewards(page: Page) -> list[float]:
    texts = page.evaluate("[...document.querySelectorAll('.bars .reward')].map(e => e.innerText)")
    return [number(text) for text in texts]


def ranked(url: str, prompt: object, responses: list[str]) -> list[Any]:
    body = {"model": "demo", "prompt": prompt, "responses": responses}
    return list(httpx.post(f"{url}/v1/rank", json=body, timeout=PATIENCE_S).json()["results"])
