"""Files on the playground: dropped, scored, browsed, saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import choose, drop, get_focus, get_text, wait
from playground import DONE, RENDERED, number, ranked, rewards
from playwright.sync_api import Page


def test_dropped_file_is_scored_and_saved(page: Page, file: Path, playground_url: str) -> None:
    drop(page, file, "#panel-answers")
    page.wait_for_selector(DONE)
    job = get_text(page, "#job")
    assert "mixed.jsonl" in job
    for line, expected in (
        (1, "2+2?"), (4, "invalid_json"), (5, "the response is a number"),
        (6, "append the answer"), (7, "unknown_shape"),
    ):  # fmt: skip
        rows = "[...document.querySelectorAll('.rows tbody tr')]"
        row = page.evaluate(f"{rows}.find(r => r.cells[0].innerText == {line}).innerText")
        assert expected in row, line
    assert page.evaluate("document.querySelectorAll('#job svg[role=img][aria-label]').length") == 2
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "mixed.rewards.jsonl"
    out = [json.loads(line) for line in download.value.path().read_text().splitlines()]
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


def test_rows_are_filtered_sorted_and_opened(page: Page) -> None:
    page.focus("#tab-answers")
    page.keyboard.press("ArrowRight")
    assert get_focus(page) == "tab-file"
    page.click("#sample-file")
    page.wait_for_selector(DONE)
    numbers = "[...document.querySelectorAll('.rows tbody tr')].map(r => r.cells[3].innerText)"
    assert len(page.evaluate(numbers)) == 28
    page.focus("#sort-margin")
    page.keyboard.press("Enter")
    margins = [number(text) for text in page.evaluate(numbers)]
    assert margins == sorted(margins)
    assert get_focus(page) == "sort-margin"
    page.keyboard.press("Enter")
    assert [number(text) for text in page.evaluate(numbers)] == margins[::-1]
    choose(page, "#filter", "wrong")
    wait(page, "document.activeElement.id === 'filter'")
    assert all(number(text) <= 0 for text in page.evaluate(numbers))
    ahead = sum(margin > 0 for margin in margins) / 28
    assert f"Chosen ahead {100 * ahead:.1f}%" in get_text(page, "#job")
    page.click(".rows tbody button")
    assert page.evaluate("document.querySelector('#tab-answers').ariaSelected") == "true"
    assert get_focus(page) == "score"
    page.keyboard.press("Enter")
    page.wait_for_selector(RENDERED)
    first, second = rewards(page)
    assert first - second == pytest.approx(margins[0], abs=2e-3)


def test_empty_and_too_long_files_are_rejected(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "many.jsonl").write_text('{"a":1}\n' * 20_001)
    for name, message in (("empty", "has no records"), ("many", "skyreward score")):
        drop(page, tmp_path / f"{name}.jsonl", "body")
        wait(page, f"document.querySelector('#alert').textContent.includes('{message}')")
        assert page.evaluate("document.querySelector('#job').hidden") is True


def test_file_scoring_can_be_stopped(page: Page, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Number {i}", "responses": [f"{i} {j}" for j in range(4)]} for i in range(3000)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drop(page, tmp_path / "long.jsonl", "body")
    wait(page, "document.querySelector('progress')?.value > 0")
    page.click("#stop")
    page.wait_for_selector(DONE)
    assert " of 3,000" in get_text(page, "#job .tiles")
    assert get_text(page, "#alert") == ""
