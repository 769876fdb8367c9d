"""The responses of every route equal the recorded ones, except for messages."""

from __future__ import annotations

import json
from typing import Any

import httpx
from service.recorded_answers import FILE, ask, requests

RECORDED = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def close(answer: Any, recorded: Any) -> bool:
    """Return whether they are equal, with computed numbers within 1e-4."""
    if isinstance(recorded, float) and isinstance(answer, float | int):
        return abs(answer - recorded) <= 1e-4
    if isinstance(recorded, dict) and isinstance(answer, dict):
        return answer.keys() == recorded.keys() and all(
            close(answer[k], recorded[k]) for k in recorded
        )
    if isinstance(recorded, list) and isinstance(answer, list):
        return len(answer) == len(recorded) and all(map(close, answer, recorded))
    return type(answer) is type(recorded) and answer == recorded


def test_responses_equal_recorded_ones(demo_url: str) -> None:
    asked = list(requests())
    assert [f"{method} {path}" for method, path, _ in asked] == [r["request"] for r in RECORDED]
    with httpx.Client(base_url=demo_url, timeout=60) as client:
        for (method, path, body), recorded in zip(asked, RECORDED, strict=True):
            answer = ask(client, method, path, body)
            recorded = {name: recorded[name] for name in answer}
            assert close(answer, recorded), (method, path, str(body)[:200], answer, recorded)
