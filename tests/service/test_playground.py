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
from browser import CTRL, Visitor
from chromium import PROGRAM
from conftest import ROOT
from playground import DONE, READY, RENDERED, number, ranked, rewards, start
from waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

LOOKS = [(1280, False), (1280, True), (360, False)]
LONG = "word " * 17_000  # longer than the 16,384 tokens of the demo model


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_every_state_is_accessible(
    browser: Visitor, playground_url: str, file: Path, width: int, dark: bool
) -> None:
    """axe-core finds no violation, and the page is not wider than the window."""
    browser.visit(playground_url, width, dark=dark)
    browser.wait(READY)

    def check() -> None:
        browser.run("new Promise(done => setTimeout(done, 350))")  # bars grow
        assert browser.violations() == []
        assert browser.run("document.documentElement.scrollWidth") <= width

    check()
    start(browser)
    check()
    browser.click("#add-answer")
    browser.write(LONG)
    browser.press("Enter", modifiers=CTRL)
    browser.wait("document.querySelector('.bars .bad')")
    check()
    browser.click("#paste")
    browser.press("Tab", "Tab", "Enter")
    browser.wait("document.querySelector('#paste-error').textContent")
    check()
    browser.press("Escape")
    browser.drop(file, "body")
    browser.wait(DONE)
    check()
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == dark


def test_axe_reports_violation(page: Visitor) -> None:
    page.run("document.querySelector('label[for=model]').remove()")
    assert any(found.startswith("select-name") for found in page.violations())


def test_conversation_is_scored_by_keyboard_only(page: Visitor, playground_url: str) -> None:
    texts = ("Capital of Peru?", "The capital of Peru is Lima.", "Peru has mountains.")
    page.run("document.querySelector('#turns textarea').focus()")
    page.write(texts[0])
    for text in texts[1:]:
        for _ in range(9):
            page.press("Tab")
            if page.focused().startswith("Answer"):
                break
        page.write(text)
    page.press("Enter", modifiers=CTRL)
    page.wait(RENDERED)
    expected = [r["reward"] for r in ranked(playground_url, texts[0], [*texts[1:]])]
    assert rewards(page) == pytest.approx(expected, abs=6e-4)
    margin = abs(expected[0] - expected[1])
    verdict = page.shown(".verdict")
    winner, loser = ("A", "B") if expected[0] > expected[1] else ("B", "A")
    assert f"{winner} preferred over {loser}" in verdict
    assert f"+{margin:.3f}" in verdict
    assert f"{100 / (1 + math.exp(-margin)):.1f}%" in verdict
    assert f"Scored 2 answers. {winner} is best" in page.run(
        "document.querySelector('#status').textContent"
    )


def test_scored_text_and_readout_are_shown(page: Visitor, playground_url: str) -> None:
    start(page, "code-median-01")
    drafts = page.run("readable = [...document.querySelectorAll('.turn textarea')].map(e=>e.value)")
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
    assert page.run("document.querySelector('#readout').textContent") == json.dumps(
        shown["text"][begin:end]
    ).strip('"')
    # The readout is a line's end, which is shown as \n.
    text = page.run("document.querySelector('pre.scored').textContent").removesuffix(r"\n")
    assert text == shown["text"].removesuffix("\n")
    assert f"token {shown['num_tokens']} of {shown['num_tokens']}" in page.shown("#scored-text")
    assert page.run("document.querySelectorAll('.bounded').length") == 0
    page.click("label[for=boundaries]")
    pieces = page.run("document.querySelectorAll('.bounded > *').length")
    assert abs(pieces - shown["num_tokens"]) <= 2
    page.click("label[for=shown-1]")
    text = page.run("document.querySelector('pre.scored').textContent").removesuffix(r"\n")
    assert text == second["text"].removesuffix("\n") != shown["text"].removesuffix("\n")


def test_adding_moving_and_removing_turns_keeps_focus(page: Visitor) -> None:
    page.click("#turns textarea")
    page.write("first")
    for text in ("second", "third"):
        page.click("#add-turn")
        page.write(text)
    roles = "[...document.querySelectorAll('#turns select')].map(e => e.value)"
    texts = "[...document.querySelectorAll('#turns textarea')].map(e => e.value)"
    assert page.run(roles) == ["user", "assistant", "user"]
    page.run("document.querySelector('#turns li:nth-child(3) .up').focus()")
    page.press("Enter")
    assert page.run(texts) == ["first", "third", "second"]
    assert page.focused() == "Move turn 2 up"
    page.press("Enter", "Enter")  # the second press cannot move the turn further
    assert page.run(texts) == ["third", "first", "second"]
    assert page.focused() == "Move turn 1 up"
    page.click("#turns li:nth-child(2) .remove")
    assert page.run(texts) == ["third", "second"]
    assert page.focused() == "Remove turn 2"
    page.wait("document.querySelector('#status').textContent === 'Removed turn 2.'")
    page.choose("#turns select", "system")
    assert page.run(roles) == ["system", "assistant"]


def test_three_answers_are_compared_in_matrix(page: Visitor) -> None:
    start(page)
    page.click("#add-answer")
    page.write("I do not know.")
    assert "The text has changed" in page.shown("#results")
    page.click("#score")
    page.wait("document.querySelectorAll('.bars li').length === 3")
    assert "The text has changed" not in page.shown("#results")
    found = rewards(page)
    cells = page.run("[...document.querySelectorAll('.matrix tbody td')].map(e => e.innerText)")
    assert number(cells[1].strip("%")) == pytest.approx(
        100 / (1 + math.exp(found[1] - found[0])), abs=0.1
    )
    best = max(range(3), key=found.__getitem__)
    abouts = page.run("[...document.querySelectorAll('.bars .about')].map(e => e.innerText)")
    assert [i for i, about in enumerate(abouts) if about.startswith("best")] == [best]


def test_scoring_error_is_shown_at_answer(page: Visitor) -> None:
    page.choose("#model", "short")
    assert "up to 64 tokens" in page.shown("#facts")
    start(page)
    page.wait("document.querySelector('.bars .bad')")
    assert len(rewards(page)) == 1
    assert "conversation_too_long" in page.shown(".bars .bad")
    assert "conversation_too_long" in page.shown("#scored-text")
    page.choose("#truncation", "right")
    page.click("#score")
    page.wait("document.querySelectorAll('.bars .reward').length === 2")
    assert "truncated" in page.shown(".bars li:nth-child(1)")
    page.wait("document.querySelector('#scored-text .flag')")
    assert "truncated" in page.shown("#scored-text")
    assert "truncated" not in page.shown(".bars li:nth-child(2)")


def test_empty_draft_is_not_scored(page: Visitor) -> None:
    page.click("#score")
    assert "at least one answer" in page.shown("#alert")
    assert page.focused() == "Answer A"
    assert page.run("document.querySelector('#empty').hidden") is False


def test_unreachable_service_is_reported(browser: Visitor, playground_url: str) -> None:
    browser.visit(playground_url)
    browser.wait(READY)
    browser.cut_off(yes=True)
    try:
        browser.click("[data-example=fact-capital-01]")
        browser.wait("document.querySelector('#alert').textContent")
        assert "cannot be reached" in browser.shown("#alert")
        assert browser.violations() == []
    finally:
        browser.cut_off(yes=False)
    browser.click("#score")
    browser.wait(RENDERED)
    assert browser.shown("#alert") == ""


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
def test_pasted_json_fills_draft(page: Visitor, pasted: str, turns: str, answers: str) -> None:
    page.click("#paste")
    page.write("{oops")
    page.click("#paste-form .main")
    assert "The text is not valid JSON" in page.shown("#paste-error")
    assert page.focused() == "paste-text"
    page.run("document.querySelector('#paste-text').select()")
    page.write(pasted)
    page.press("Tab", "Tab", "Enter")
    assert page.run("document.querySelector('#paste-dialog').open") is False
    texts = "[...document.querySelectorAll('#{} textarea')].map(e => e.value).join()"
    assert page.run(texts.format("turns")) == turns
    assert page.run(texts.format("answers")) == answers


def test_example_and_paste_dialog_work_by_keyboard(page: Visitor) -> None:
    page.choose("#example", "multi-turn-running-01")
    assert page.run("document.querySelectorAll('#turns li').length") >= 3
    page.run("document.querySelector('#paste').focus()")
    page.press("Enter")
    assert page.focused() == "paste-text"
    page.press("Escape")
    assert page.focused() == "paste"


@pytest.mark.parametrize("language", ["curl", "python"])
def test_copied_code_returns_same_rewards(page: Visitor, language: str) -> None:
    page.choose("#example", "chinese-tea-01")
    page.click("#score")
    page.wait(RENDERED)
    page.click(f"label[for=language-{language}]")
    page.click("#copy")
    page.wait("document.querySelector('#copy').textContent === 'Copied'")
    code = page.run("navigator.clipboard.readText()")
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
