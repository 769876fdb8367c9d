"""Files on the playground: dropped, scored, browsed, saved."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from browser import Visitor
from chromium import PROGRAM
from playground import DONE, RENDERED, number, ranked, rewards
from waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")


def test_dropped_file_is_scored_and_saved(
    page: Visitor, file: Path, playground_url: str, tmp_path: Path
) -> None:
    page.drop(file, "#panel-answers")
    page.wait(DONE)
    job = page.shown("#job")
    assert "mixed.jsonl" in job
    for line, expected in (
        (1, "2+2?"), (4, "invalid_json"), (5, "the response is a number"),
        (6, "append the answer"), (7, "unknown_shape"),
    ):  # fmt: skip
        rows = "[...document.querySelectorAll('.rows tbody tr')]"
        row = page.run(f"{rows}.find(r => r.cells[0].innerText == {line}).innerText")
        assert expected in row, line
    assert page.run("document.querySelectorAll('#job svg[role=img][aria-label]').length") == 2
    page.save_into(tmp_path)
    page.click("#save")
    saved = tmp_path / "mixed.rewards.jsonl"
    end = time.monotonic() + PATIENCE_S
    while not saved.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    out = [json.loads(line) for line in saved.read_text().splitlines()]
    four, no = (
        r["reward"] for r in ranked(playground_url, "2+2?", ["4", "I would rather not say."])
    )
    morning, _, nay = ranked(playground_url, "Hello!", ["Good morning!", 5, "No."])  # type: ignore[list-item]
    pair, single, broken, group, unanswered, shapeless = out
    assert pair["chosen_reward"] == pytest.approx(four, abs=1e-5)
    assert pair["rejected_reward"] == pytest.approx(no, abs=1e-5)
    assert pair["margin"] == pair["chosen_reward"] - pair["rejected_reward"]
    assert single["reward"] == pytest.approx(four, abs=1e-5)
    assert (broken["line"], broken["error"]["code"]) == ("no JSON", "invalid_json")
    expected_rewards = [morning["reward"], None, nay["reward"]]
    assert group["rewards"][::2] == pytest.approx(expected_rewards[::2], abs=1e-5)
    assert group["rewards"][1] is None
    assert (group["kept"], group["error"]["code"]) == ([1], "invalid_conversation")
    assert "reward" not in unanswered
    assert shapeless["error"]["code"] == "unknown_shape"


def test_rows_are_filtered_sorted_and_opened(page: Visitor) -> None:
    page.run("document.querySelector('#tab-answers').focus()")
    page.press("ArrowRight")
    assert page.focused() == "tab-file"
    page.click("#sample-file")
    page.wait(DONE)
    numbers = "[...document.querySelectorAll('.rows tbody tr')].map(r => r.cells[3].innerText)"
    assert len(page.run(numbers)) == 28
    page.run("document.querySelector('#sort-margin').focus()")
    page.press("Enter")
    margins = [number(text) for text in page.run(numbers)]
    assert margins == sorted(margins)
    assert page.focused() == "sort-margin"
    page.press("Enter")
    assert [number(text) for text in page.run(numbers)] == margins[::-1]
    page.choose("#filter", "wrong")
    page.wait("document.activeElement.id === 'filter'")
    assert all(number(text) <= 0 for text in page.run(numbers))
    ahead = sum(margin > 0 for margin in margins) / 28
    assert f"Chosen ahead {100 * ahead:.1f}%" in page.shown("#job")
    page.click(".rows tbody button")
    assert page.run("document.querySelector('#tab-answers').ariaSelected") == "true"
    assert page.focused() == "score"
    page.press("Enter")
    page.wait(RENDERED)
    first, second = rewards(page)
    assert first - second == pytest.approx(margins[0], abs=2e-3)


def test_empty_and_too_long_files_are_rejected(page: Visitor, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "many.jsonl").write_text('{"a":1}\n' * 20_001)
    for name, message in (("empty", "has no records"), ("many", "skyreward score")):
        page.drop(tmp_path / f"{name}.jsonl", "body")
        page.wait(f"document.querySelector('#alert').textContent.includes('{message}')")
        assert page.run("document.querySelector('#job').hidden") is True


def test_file_scoring_can_be_stopped(page: Visitor, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Number {i}", "responses": [f"{i} {j}" for j in range(4)]} for i in range(3000)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page.drop(tmp_path / "long.jsonl", "body")
    page.wait("document.querySelector('progress')?.value > 0")
    page.click("#stop")
    page.wait(DONE)
    assert " of 3,000" in page.shown("#job .tiles")
    assert page.shown("#alert") == ""
