"""Selectors and helpers for tests of the playground, and a file to drop on it."""

from __future__ import annotations

from typing import Any

import httpx
from browser import Visitor
from waiting import PATIENCE_S

CAPITAL = "fact-capital-01"
READY = "document.querySelector('#model').value"
RENDERED = "document.querySelector('#readout')"
DONE = "document.querySelector('#save')"
LINES = [
    '{"id": 1, "prompt": "2+2?", "chosen": "4", "rejected": "I would rather not say."}',
    "",
    '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}',
    "no JSON",
    '{"prompt": "Hello!", "responses": ["Good morning!", 5, "No."], "kept": [1]}',
    '{"messages": [{"role": "user", "content": "2+2?"}]}',
    '{"text": "of no known shape"}',
]


def start(page: Visitor, example: str = CAPITAL) -> None:
    page.click(f"[data-example={example}]")
    page.wait("!document.querySelector('#scored-text').hidden")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def rewards(page: Visitor) -> list[float]:
    texts = page.run("[...document.querySelectorAll('.bars .reward')].map(e => e.innerText)")
    return [number(text) for text in texts]


def ranked(url: str, prompt: object, responses: list[str]) -> list[Any]:
    body = {"model": "demo", "prompt": prompt, "responses": responses}
    return list(httpx.post(f"{url}/v1/rank", json=body, timeout=PATIENCE_S).json()["results"])
