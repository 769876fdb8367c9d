"""The playground in a real browser with a step model and a judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import choose, drop, find_violations, finish_animations, get_text, wait
from kinds import build_judge, build_step_model
from playground import DONE, number, rewards
from playwright.sync_api import Page
from preloaded import run_service
from waiting import PATIENCE_S

PROBLEM = "Jane has 12 apples and gives 4 to Mark. How many are left?"
SOLUTIONS = ["12 - 4 = 8\nSo Jane has 8 apples left.", "It is 9.\n\nSo 9."]


@pytest.fixture(scope="module")
def playground_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("kinds")
    models = [
        {"name": str(build_step_model(folder / "prm")), "alias": "prm"},
        {"name": str(build_judge(folder / "judge")), "alias": "judge", "kind": "judge"},
    ]
    config = folder / "models.yaml"
    config.write_text(json.dumps({"models": models, "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        yield url


def score(page: Page, model: str, answers: list[str]) -> None:
    choose(page, "#model", model)
    page.fill("#turns textarea", PROBLEM)
    for index, answer in enumerate(answers, 1):
        if page.locator("#answers li").count() < index:
            page.click("#add-answer")
        page.fill(f"#answers li:nth-child({index}) textarea", answer)
    page.click("#score")


def post(url: str, route: str, **body: Any) -> list[Any]:
    answer = httpx.post(f"{url}/{route}", json=body, timeout=PATIENCE_S)
    return list(answer.json()["results"])


def check_accessibility(page: Page) -> None:
    finish_animations(page)
    assert find_violations(page) == []


def test_steps_are_colored_by_their_rewards(page: Page, playground_url: str) -> None:
    score(page, "prm", SOLUTIONS)
    page.wait_for_selector(".steps li")
    assert "step model" in get_text(page, "#facts")
    expected = post(
        playground_url,
        "v1/steps",
        model="prm",
        items=[{"prompt": PROBLEM, "response": text} for text in SOLUTIONS],
    )
    assert rewards(page) == pytest.approx([r["reward"] for r in expected], abs=6e-4)
    for index, texts in enumerate((SOLUTIONS[0].split("\n"), ["It is 9.", "(blank)", "So 9."])):
        page.click(f"label[for=shown-{index}]")
        wanted = expected[index]["step_rewards"]
        assert page.locator(".steps .step").all_inner_texts() == texts
        shown = page.locator(".steps .reward").all_inner_texts()
        assert list(map(number, shown)) == pytest.approx(wanted, abs=6e-4)
        titles = page.eval_on_selector_all(".steps li", "items => items.map(item => item.title)")
        assert [float(title.split(": ")[1]) for title in titles] == wanted
        shares = page.eval_on_selector_all(
            ".steps li", "items => items.map(item => item.style.getPropertyValue('--share'))"
        )
        assert shares == [f"{round(100 * reward)}%" for reward in wanted]
        check_accessibility(page)
    assert "last of 2 steps" in get_text(page, ".bars li:nth-child(1)")


def test_judge_is_shown_in_both_orders(page: Page, playground_url: str) -> None:
    score(page, "judge", SOLUTIONS)
    page.wait_for_selector(".verdicts td")
    pair = {"prompt": PROBLEM, "chosen": SOLUTIONS[0], "rejected": SOLUTIONS[1]}
    (expected,) = post(playground_url, "v1/compare", model="judge", pairs=[pair])
    *read, margin, orders = page.locator(".verdicts td").all_inner_texts()
    (first, first_mass), (second, second_mass) = (cell.split("label mass") for cell in read)
    given, swapped = expected["orders"]
    assert [number(first), number(second)] == pytest.approx(
        [given["log_odds"], swapped["log_odds"]], abs=6e-4
    )
    masses = [number(mass.strip("<> %")) for mass in (first_mass, second_mass)]
    assert masses == pytest.approx(
        [100 * given["label_mass"], 100 * swapped["label_mass"]], abs=0.11
    )
    assert number(margin) == pytest.approx(expected["margin"], abs=6e-4)
    assert orders == ("agree" if expected["consistent"] else "differ")
    # The verdict above has the margin of the pair, not the difference of two mean margins.
    assert f"+{abs(expected['margin']):.3f}" in get_text(page, ".verdict")
    assert page.locator("#scored-text").is_hidden()
    check_accessibility(page)


def test_judge_compares_every_pair_of_three_answers(page: Page, playground_url: str) -> None:
    answers = [*SOLUTIONS, "I do not know."]
    score(page, "judge", answers)
    wait(page, "document.querySelectorAll('.verdicts tbody tr').length === 3")
    ranked = post(playground_url, "v1/rank", model="judge", prompt=PROBLEM, responses=answers)
    assert rewards(page) == pytest.approx([r["reward"] for r in ranked], abs=6e-4)
    assert "mean margin over 2 comparisons" in get_text(page, ".bars li:nth-child(1)")
    score(page, "judge", [*SOLUTIONS, "far " * 2000])
    page.wait_for_selector(".bars .bad")
    assert "conversation_too_long" in get_text(page, ".verdicts")
    check_accessibility(page)


def test_pairs_of_a_file_get_verdicts(page: Page, playground_url: str, tmp_path: Path) -> None:
    choose(page, "#model", "judge")
    pair = {"prompt": PROBLEM, "chosen": SOLUTIONS[0], "rejected": SOLUTIONS[1]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    drop(page, tmp_path / "pairs.jsonl", "body")
    page.wait_for_selector(DONE)
    (expected,) = post(playground_url, "v1/compare", model="judge", pairs=[pair])
    cells = page.locator(".rows tbody td").all_inner_texts()
    assert cells[1:3] == ["", ""]
    assert number(cells[3]) == pytest.approx(expected["margin"], abs=6e-4)
    with page.expect_download() as download:
        page.click("#save")
    saved = json.loads(Path(download.value.path()).read_text())
    assert {key: saved[key] for key in ("margin", "orders", "consistent")} == {
        key: expected[key] for key in ("margin", "orders", "consistent")
    }
    assert "chosen_reward" not in saved
    check_accessibility(page)
