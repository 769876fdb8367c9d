"""The playground in a real browser, on a real service: clicks, typing, drag and drop."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from browser import (
    OpenPage,
    choose,
    drop,
    find_violations,
    finish_animations,
    get_focus,
    get_text,
    press,
    wait,
)
from conftest import ROOT
from playground import DONE, READY, RENDERED, number, ranked, rewards, start
from playwright.sync_api import Page
from waiting import PATIENCE_S

LOOKS = [(1280, False), (1280, True), (360, False)]
LONG = "word " * 17_000  # longer than the 16,384 tokens of the demo model


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_every_state_is_accessible(
    open_page: OpenPage, playground_url: str, file: Path, width: int, dark: bool
) -> None:
    """axe-core finds no violation, and the page is not wider than the window."""
    page = open_page(playground_url, width, dark=dark)
    wait(page, READY)

    def check() -> None:
        finish_animations(page)
        assert find_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check()
    start(page)
    check()
    page.click("#add-answer")
    page.keyboard.insert_text(LONG)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".bars .bad")
    check()
    page.click("#paste")
    press(page, "Tab", "Tab", "Enter")
    wait(page, "document.querySelector('#paste-error').textContent")
    check()
    page.keyboard.press("Escape")
    drop(page, file, "body")
    page.wait_for_selector(DONE)
    check()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == dark


def test_axe_reports_violation(page: Page) -> None:
    page.evaluate("document.querySelector('label[for=model]').remove()")
    assert any(found.startswith("select-name") for found in find_violations(page))


def test_conversation_is_scored_by_keyboard_only(page: Page, playground_url: str) -> None:
    texts = ("Capital of Peru?", "The capital of Peru is Lima.", "Peru has mountains.")
    page.focus("#turns textarea")
    page.keyboard.insert_text(texts[0])
    for text in texts[1:]:
        for _ in range(9):
            page.keyboard.press("Tab")
            if get_focus(page).startswith("Answer"):
                break
        page.keyboard.insert_text(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(RENDERED)
    expected = [r["reward"] for r in ranked(playground_url, texts[0], [*texts[1:]])]
    assert rewards(page) == pytest.approx(expected, abs=6e-4)
    margin = abs(expected[0] - expected[1])
    verdict = get_text(page, ".verdict")
    winner, loser = ("A", "B") if expected[0] > expected[1] else ("B", "A")
    assert f"{winner} preferred over {loser}" in verdict
    assert f"+{margin:.3f}" in verdict
    assert f"{100 / (1 + math.exp(-margin)):.1f}%" in verdict
    assert f"Scored 2 answers. {winner} is best" in page.evaluate(
        "document.querySelector('#status').textContent"
    )


def test_scored_text_and_readout_are_shown(page: Page, playground_url: str) -> None:
    start(page, "code-median-01")
    drafts = page.evaluate(
        "readable = [...document.querySelectorAll('.turn textarea')].map(e=>e.value)"
    )
    conversation = [
        {"role": "user", "content": drafts[0]},
        {"role": "assistant", "content": drafts[1]},
    ]
    other = [conversation[0], {"role": "assistant", "content": drafts[2]}]
    body = {"model": "demo", "conversations": [conversation, other], "offsets": True}
    shown, second = httpx.post(f"{playground_url}/v1/render", json=body, timeout=PATIENCE_S).json()[
        "results"
    ]
    begin, end = shown["offsets"][shown["readout_position"]]
    assert page.evaluate("document.querySelector('#readout').textContent") == json.dumps(
        shown["text"][begin:end]
    ).strip('"')
    # The readout is a line's end, which is shown as \n.
    text = page.evaluate("document.querySelector('pre.scored').textContent").removesuffix(r"\n")
    assert text == shown["text"].removesuffix("\n")
    assert f"token {shown['num_tokens']} of {shown['num_tokens']}" in get_text(page, "#scored-text")
    assert page.evaluate("document.querySelectorAll('.bounded').length") == 0
    page.click("label[for=boundaries]")
    pieces = page.evaluate("document.querySelectorAll('.bounded > *').length")
    assert abs(pieces - shown["num_tokens"]) <= 2
    page.click("label[for=shown-1]")
    text = page.evaluate("document.querySelector('pre.scored').textContent").removesuffix(r"\n")
    assert text == second["text"].removesuffix("\n") != shown["text"].removesuffix("\n")


def test_adding_moving_and_removing_turns_keeps_focus(page: Page) -> None:
    page.click("#turns textarea")
    page.keyboard.insert_text("first")
    for text in ("second", "third"):
        page.click("#add-turn")
        page.keyboard.insert_text(text)
    roles = "[...document.querySelectorAll('#turns select')].map(e => e.value)"
    texts = "[...document.querySelectorAll('#turns textarea')].map(e => e.value)"
    assert page.evaluate(roles) == ["user", "assistant", "user"]
    page.evaluate("document.querySelector('#turns li:nth-child(3) .up').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate(texts) == ["first", "third", "second"]
    assert get_focus(page) == "Move turn 2 up"
    press(page, "Enter", "Enter")  # the second press cannot move the turn further
    assert page.evaluate(texts) == ["third", "first", "second"]
    assert get_focus(page) == "Move turn 1 up"
    page.click("#turns li:nth-child(2) .remove")
    assert page.evaluate(texts) == ["third", "second"]
    assert get_focus(page) == "Remove turn 2"
    wait(page, "document.querySelector('#status').textContent === 'Removed turn 2.'")
    choose(page, "#turns select", "system")
    assert page.evaluate(roles) == ["system", "assistant"]


def test_three_answers_are_compared_in_matrix(page: Page) -> None:
    start(page)
    page.click("#add-answer")
    page.keyboard.insert_text("I do not know.")
    assert "The text has changed" in get_text(page, "#results")
    page.click("#score")
    wait(page, "document.querySelectorAll('.bars li').length === 3")
    assert "The text has changed" not in get_text(page, "#results")
    found = rewards(page)
    cells = page.evaluate(
        "[...document.querySelectorAll('.matrix tbody td')].map(e => e.innerText)"
    )
    assert number(cells[1].strip("%")) == pytest.approx(
        100 / (1 + math.exp(found[1] - found[0])), abs=0.1
    )
    best = max(range(3), key=found.__getitem__)
    abouts = page.evaluate("[...document.querySelectorAll('.bars .about')].map(e => e.innerText)")
    assert [i for i, about in enumerate(abouts) if about.startswith("best")] == [best]


def test_scoring_error_is_shown_at_answer(page: Page) -> None:
    choose(page, "#model", "short")
    assert "up to 64 tokens" in get_text(page, "#facts")
    start(page)
    page.wait_for_selector(".bars .bad")
    assert len(rewards(page)) == 1
    assert "conversation_too_long" in get_text(page, ".bars .bad")
    assert "conversation_too_long" in get_text(page, "#scored-text")
    choose(page, "#truncation", "right")
    page.click("#score")
    wait(page, "document.querySelectorAll('.bars .reward').length === 2")
    assert "truncated" in get_text(page, ".bars li:nth-child(1)")
    page.wait_for_selector("#scored-text .flag")
    assert "truncated" in get_text(page, "#scored-text")
    assert "truncated" not in get_text(page, ".bars li:nth-child(2)")


def test_empty_draft_is_not_scored(page: Page) -> None:
    page.click("#score")
    assert "at least one answer" in get_text(page, "#alert")
    assert get_focus(page) == "Answer A"
    assert page.evaluate("document.querySelector('#empty').hidden") is False


def test_unreachable_service_is_reported(open_page: OpenPage, playground_url: str) -> None:
    page = open_page(playground_url)
    wait(page, READY)
    page.context.set_offline(True)
    page.click("[data-example=fact-capital-01]")
    wait(page, "document.querySelector('#alert').textContent")
    assert "cannot be reached" in get_text(page, "#alert")
    assert find_violations(page) == []
    page.context.set_offline(False)
    page.click("#score")
    page.wait_for_selector(RENDERED)
    assert get_text(page, "#alert") == ""


@pytest.mark.parametrize(
    ("pasted", "turns", "answers"),
    [
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "a", "b,"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "a", "b,c"),
        ('{"prompt": "a", "responses": ["b", "c", "d"]}\n{"prompt": "z"}', "a", "b,c,d"),
        (
            '{"prompt": [{"role": "user", "content": "a"}],'
            '"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],'
            '"rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]'
            "}",
            "a",
            "b,c",
        ),
        (
            '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},'
            ' {"from": "human", "value": "c"}], "system": "s"}',
            "s,a,b,c",
            ",",
        ),
    ],
)  # fmt: skip
def test_pasted_json_fills_draft(page: Page, pasted: str, turns: str, answers: str) -> None:
    page.click("#paste")
    page.keyboard.insert_text("{oops")
    page.click("#paste-form .main")
    assert "The text is not valid JSON" in get_text(page, "#paste-error")
    assert get_focus(page) == "paste-text"
    page.evaluate("document.querySelector('#paste-text').select()")
    page.keyboard.insert_text(pasted)
    press(page, "Tab", "Tab", "Enter")
    assert page.evaluate("document.querySelector('#paste-dialog').open") is False
    texts = "[...document.querySelectorAll('#{} textarea')].map(e => e.value).join()"
    assert page.evaluate(texts.format("turns")) == turns
    assert page.evaluate(texts.format("answers")) == answers


def test_example_and_paste_dialog_work_by_keyboard(page: Page) -> None:
    choose(page, "#example", "multi-turn-running-01")
    assert page.evaluate("document.querySelectorAll('#turns li').length") >= 3
    page.focus("#paste")
    page.keyboard.press("Enter")
    assert get_focus(page) == "paste-text"
    page.keyboard.press("Escape")
    assert get_focus(page) == "paste"


@pytest.mark.parametrize("language", ["curl", "python"])
def test_copied_code_returns_same_rewards(page: Page, language: str) -> None:
    choose(page, "#example", "chinese-tea-01")
    page.click("#score")
    page.wait_for_selector(RENDERED)
    page.click(f"label[for=language-{language}]")
    page.click("#copy")
    wait(page, "document.querySelector('#copy').textContent === 'Copied'")
    code = page.evaluate("navigator.clipboard.readText()")
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    if language == "curl":
        found = [result["reward"] for result in json.loads(done.stdout)["results"]]
    else:
        found = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert found == pytest.approx(rewards(page), abs=6e-4)


def test_readme_screenshot_is_small() -> None:
    picture = ROOT / "docs" / "assets" / "playground.png"
    assert picture.stat().st_size < 150_000
    assert "docs/assets/playground.png" in (ROOT / "README.md").read_text()
