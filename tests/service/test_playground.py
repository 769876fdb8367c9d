"""The playground in a real browser, on a real service: clicked, typed and dropped as people do."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import PROGRAM
from conftest import ROOT
from visitor import CTRL, Visitor

from serve.demo import running_service

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

CAPITAL = "fact-capital-01"
LOOKS = [(1280, False), (1280, True), (360, False)]
READY = "document.querySelector('#model').value"
RENDERED = "document.querySelector('#readout')"
DONE = "document.querySelector('#save')"
LONG = "word " * 17_000  # the demo model takes 16,384 tokens; it is not scored
LINES = [
    '{"id": 1, "prompt": "2+2?", "chosen": "4", "rejected": "I would rather not say."}',
    "",
    '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}',
    "no JSON",
    '{"prompt": "Hello!", "responses": ["Good morning!", 5, "No."], "kept": [1]}',
    '{"messages": [{"role": "user", "content": "2+2?"}]}',
    '{"text": "of no known shape"}',
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the demo model, and of the same for short conversations alone."""
    config = tmp_path_factory.mktemp("config") / "models.yaml"
    config.write_text("models: [{name: demo}, {name: demo, alias: short, max_length: 64}]")
    with running_service("--local", "--config", str(config)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with Visitor(tmp_path_factory.mktemp("browser")) as visitor:
        visitor.allow_copying()
        yield visitor


@pytest.fixture
def page(browser: Visitor, url: str) -> Iterator[Visitor]:
    """The page, just opened; nothing on it may have complained, nor asked another host."""
    browser.visit(url)
    browser.wait(READY)
    yield browser
    # What is not waited for any more is given up.
    assert {*browser.complaints} <= {"not loaded: net::ERR_ABORTED"}
    assert {re.match(r"(?:http://[^/]+|blob|data)", a)[0] for a in browser.asked} <= {url, "data"}  # type: ignore[index]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mixed.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path / "mixed.jsonl"


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
    return list(httpx.post(f"{url}/v1/rank", json=body, timeout=60).json()["results"])


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_every_state_is_fit_for_everybody(
    browser: Visitor, url: str, file: Path, width: int, dark: bool
) -> None:
    """Without a finding of axe-core, and not wider than the window."""
    browser.visit(url, width, dark=dark)
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


def test_axe_finds_what_is_wrong(page: Visitor) -> None:
    page.run("document.querySelector('label[for=model]').remove()")
    assert any(found.startswith("select-name") for found in page.violations())


def test_typed_and_scored_by_the_keyboard_alone(page: Visitor, url: str) -> None:
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
    expected = [r["reward"] for r in ranked(url, texts[0], [*texts[1:]])]
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


def test_the_text_that_was_scored_with_its_readout(page: Visitor, url: str) -> None:
    start(page, "code-median-01")
    drafts = page.run("readable = [...document.querySelectorAll('.turn textarea')].map(e=>e.value)")
    conversation = [
        {"role": "user", "content": drafts[0]},
        {"role": "assistant", "content": drafts[1]},
    ]
    other = [conversation[0], {"role": "assistant", "content": drafts[2]}]
    body = {"model": "demo", "conversations": [conversation, other], "offsets": True}
    shown, second = httpx.post(f"{url}/v1/render", json=body).json()["results"]
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


def test_turns_are_added_moved_and_removed_and_the_focus_stays(page: Visitor) -> None:
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
    page.press("Enter", "Enter")  # the second one has nowhere to go
    assert page.run(texts) == ["third", "first", "second"]
    assert page.focused() == "Move turn 1 up"
    page.click("#turns li:nth-child(2) .remove")
    assert page.run(texts) == ["third", "second"]
    assert page.focused() == "Remove turn 2"
    page.wait("document.querySelector('#status').textContent === 'Removed turn 2.'")
    page.choose("#turns select", "system")
    assert page.run(roles) == ["system", "assistant"]


def test_three_answers_stand_against_each_other(page: Visitor) -> None:
    start(page)
    page.click("#add-answer")
    page.write("I do not know.")
    assert "The text was changed since" in page.shown("#results")
    page.click("#score")
    page.wait("document.querySelectorAll('.bars li').length === 3")
    assert "The text was changed since" not in page.shown("#results")
    found = rewards(page)
    cells = page.run("[...document.querySelectorAll('.matrix tbody td')].map(e => e.innerText)")
    assert number(cells[1].strip("%")) == pytest.approx(
        100 / (1 + math.exp(found[1] - found[0])), abs=0.1
    )
    best = max(range(3), key=found.__getitem__)
    abouts = page.run("[...document.querySelectorAll('.bars .about')].map(e => e.innerText)")
    assert [i for i, about in enumerate(abouts) if about.startswith("best")] == [best]


def test_what_cannot_be_scored_is_told_in_its_place(page: Visitor) -> None:
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
    assert "cut to fit" in page.shown(".bars li:nth-child(1)")
    page.wait("document.querySelector('#scored-text .flag')")
    assert "cut to fit" in page.shown("#scored-text")
    assert "cut to fit" not in page.shown(".bars li:nth-child(2)")


def test_nothing_is_not_scored(page: Visitor) -> None:
    page.click("#score")
    assert "no answer to score" in page.shown("#alert")
    assert page.focused() == "Answer A"
    assert page.run("document.querySelector('#empty').hidden") is False


def test_a_service_that_is_gone_is_told(browser: Visitor, url: str) -> None:
    browser.visit(url)
    browser.wait(READY)
    browser.cut_off(yes=True)
    try:
        browser.click(f"[data-example={CAPITAL}]")
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
        ('{"prompt": "a", "responses": ["b", "c", "d"]}\n{"prompt": "z", "responses": []}', "a", "b,c,d"),
        (
            '{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],'
            ' "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}',
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
def test_json_is_pasted(page: Visitor, pasted: str, turns: str, answers: str) -> None:
    page.click("#paste")
    page.write("{oops")
    page.click("#paste-form .main")
    assert "This is no JSON" in page.shown("#paste-error")
    assert page.focused() == "paste-text"
    page.run("document.querySelector('#paste-text').select()")
    page.write(pasted)
    page.press("Tab", "Tab", "Enter")
    assert page.run("document.querySelector('#paste-dialog').open") is False
    texts = "[...document.querySelectorAll('#{} textarea')].map(e => e.value).join()"
    assert page.run(texts.format("turns")) == turns
    assert page.run(texts.format("answers")) == answers


def test_an_example_is_chosen_and_the_dialog_left_by_keys(page: Visitor) -> None:
    page.choose("#example", "multi-turn-running-01")
    assert page.run("document.querySelectorAll('#turns li').length") >= 3
    page.run("document.querySelector('#paste').focus()")
    page.press("Enter")
    assert page.focused() == "paste-text"
    page.press("Escape")
    assert page.focused() == "paste"


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_copied_code_gives_the_same_rewards(page: Visitor, language: str) -> None:
    page.choose("#example", "chinese-tea-01")
    page.click("#score")
    page.wait(RENDERED)
    page.click(f"label[for=language-{language}]")
    page.click("#copy")
    page.wait("document.querySelector('#copy').textContent === 'Copied'")
    code = page.run("navigator.clipboard.readText()")
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    if language == "curl":
        found = [result["reward"] for result in json.loads(done.stdout)["results"]]
    else:
        found = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert found == pytest.approx(rewards(page), abs=6e-4)


def test_a_file_is_dropped(page: Visitor, file: Path, url: str, tmp_path: Path) -> None:
    page.drop(file, "#panel-answers")
    page.wait(DONE)
    job = page.shown("#job")
    assert "mixed.jsonl" in job
    for line, said in (
        (1, "2+2?"), (4, "invalid_json"), (5, "the response is a number"),
        (6, "append the answer"), (7, "unknown_shape"),
    ):  # fmt: skip
        row = f"[...document.querySelectorAll('.rows tbody tr')].find(r => r.cells[0].innerText == {line})"
        assert said in page.run(f"{row}.innerText"), line
    assert page.run("document.querySelectorAll('#job svg[role=img][aria-label]').length") == 2
    page.save_into(tmp_path)
    page.click("#save")
    saved = tmp_path / "mixed.rewards.jsonl"
    end = time.monotonic() + 30
    while not saved.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    out = [json.loads(line) for line in saved.read_text().splitlines()]
    four, no = (r["reward"] for r in ranked(url, "2+2?", ["4", "I would rather not say."]))
    morning, _, nay = ranked(url, "Hello!", ["Good morning!", 5, "No."])  # type: ignore[list-item]
    pair, single, broken, group, unanswered, shapeless = out
    assert pair["chosen_reward"] == pytest.approx(four, abs=1e-5)
    assert pair["rejected_reward"] == pytest.approx(no, abs=1e-5)
    assert pair["margin"] == pair["chosen_reward"] - pair["rejected_reward"]
    assert single["reward"] == pytest.approx(four, abs=1e-5)
    assert (broken["line"], broken["error"]["code"]) == ("no JSON", "invalid_json")
    expected = [morning["reward"], None, nay["reward"]]
    assert group["rewards"][::2] == pytest.approx(expected[::2], abs=1e-5)
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


def test_files_that_are_too_much_or_nothing_are_refused(page: Visitor, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "many.jsonl").write_text('{"a":1}\n' * 20_001)
    for name, said in (("empty", "has no records"), ("many", "skyreward score")):
        page.drop(tmp_path / f"{name}.jsonl", "body")
        page.wait(f"document.querySelector('#alert').textContent.includes('{said}')")
        assert page.run("document.querySelector('#job').hidden") is True


def test_a_job_is_stopped(page: Visitor, tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {i}", "responses": [f"{i} {j}" for j in range(4)]} for i in range(3000)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page.drop(tmp_path / "long.jsonl", "body")
    page.wait("document.querySelector('progress')?.value > 0")
    page.click("#stop")
    page.wait(DONE)
    assert " of 3,000" in page.shown("#job .tiles")
    assert page.shown("#alert") == ""


def test_the_picture_in_the_readme_is_small() -> None:
    picture = ROOT / "deploy" / "playground.png"
    assert picture.stat().st_size < 150_000
    assert "deploy/playground.png" in (ROOT / "README.md").read_text()
