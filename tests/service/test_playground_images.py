"""Images in the playground: chosen, dropped, pasted, removed, scored."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
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
    wait,
)
from image_files import answer, ask, encode_image, make_image, to_uri
from playground import READY, rewards
from playwright.sync_api import Page
from preloaded import run_service
from vision import build_vision_model
from waiting import PATIENCE_S

ANSWERS = ["A pattern of shades.", "A dog."]
NUM_IMAGES = "document.querySelectorAll('#turns .image').length"
_PASTE = """([selector, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
    const event = new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true});
    document.querySelector(selector).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def playground_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("images")
    vision = {"name": str(build_vision_model(folder / "vl")), "alias": "vl"}
    config = folder / "models.yaml"
    config.write_text(json.dumps({"models": [vision, {"name": "demo"}], "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        yield url


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two image files."""
    paths = [tmp_path / f"{shade}.png" for shade in (0, 200)]
    for path in paths:
        path.write_bytes(encode_image(make_image(shade=int(path.stem))))
    return paths


def add(page: Page, *files: Path) -> None:
    """Drop files on the first turn, one after another."""
    for number, file in enumerate(files, 1):
        drop(page, file, "#turns .turn")
        wait(page, f"{NUM_IMAGES} === {number}")


def score(page: Page) -> None:
    page.fill("#turns textarea", "What is shown?")
    for index, text in enumerate(ANSWERS, 1):
        page.fill(f"#answers li:nth-child({index}) textarea", text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#readout")


def rank(url: str, *files: Path) -> list[float]:
    prompt = [ask(*(to_uri(file.read_bytes()) for file in files))]
    body = {"model": "vl", "prompt": prompt, "responses": ANSWERS}
    response = httpx.post(f"{url}/v1/rank", json=body, timeout=PATIENCE_S)
    return [result["reward"] for result in response.json()["results"]]


def check_accessibility(page: Page) -> None:
    finish_animations(page)
    assert find_violations(page) == []


def test_images_are_scored_in_order(page: Page, playground_url: str, images: list[Path]) -> None:
    # The browser must know that dialogs are intercepted before a key opens one.
    page.on("filechooser", lambda _: None)
    choose(page, "#turns select", "system")
    choose(page, "#turns select", "user")
    page.focus("#turns .add-image")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(images)
    wait(page, f"{NUM_IMAGES} === 2")
    score(page)
    assert rewards(page) == pytest.approx(rank(playground_url, *images), abs=6e-4)
    shown = get_text(page, "#scored-text")
    assert "image 2: 84 × 56 pixels, 6 tokens" in shown
    assert shown.count("<|image_pad|>") == 2
    assert "... (" in get_text(page, "#snippet")
    page.click("#copy")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert to_uri(images[0].read_bytes()) in copied
    assert page.locator("#stale").is_hidden()
    assert page.get_by_alt_text("Image 1 of turn 1").evaluate("image => image.naturalWidth") == 84
    check_accessibility(page)
    page.focus("#turns .remove-image")
    page.keyboard.press("Enter")
    assert page.locator("#stale").is_visible()
    assert page.evaluate(NUM_IMAGES) == 1
    assert get_focus(page) == "Remove image 1 of turn 1"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#stale", state="hidden")
    assert rewards(page) == pytest.approx(rank(playground_url, images[1]), abs=6e-4)


def test_images_are_dropped_and_pasted(page: Page, playground_url: str, images: list[Path]) -> None:
    add(page, images[0])
    data = base64.b64encode(images[1].read_bytes()).decode()
    page.evaluate(_PASTE, ["#turns textarea", data])
    wait(page, f"{NUM_IMAGES} === 2")
    score(page)
    assert rewards(page) == pytest.approx(rank(playground_url, *images), abs=6e-4)


def test_conversation_with_image_is_pasted_as_json(
    page: Page, playground_url: str, images: list[Path]
) -> None:
    source = to_uri(images[0].read_bytes())
    page.click("#paste")
    page.fill("#paste-text", json.dumps([ask(source), answer(ANSWERS[0])]))
    page.keyboard.press("Control+Enter")
    page.click("#paste-form .main")
    wait(page, f"{NUM_IMAGES} === 1")
    score(page)
    assert rewards(page) == pytest.approx(rank(playground_url, images[0]), abs=6e-4)
    page.click("#paste")
    page.fill("#paste-text", json.dumps([ask("https://example.org/x.png"), answer()]))
    page.click("#paste-form .main")
    assert "each image must be a data URI or base64" in get_text(page, "#paste-error")


def test_other_files_and_models_are_refused(page: Page, images: list[Path], tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    drop(page, drawing, "#turns .turn")
    page.wait_for_selector("#alert .trouble")
    assert "drawing.svg is not a PNG" in get_text(page, "#alert")
    assert page.evaluate(NUM_IMAGES) == 0
    choose(page, "#turns select", "system")
    assert page.locator("#turns .add-image").is_hidden()
    choose(page, "#turns select", "user")
    add(page, images[0])
    choose(page, "#model", "demo")
    assert page.locator("#turns .add-image").is_hidden()
    page.fill("#turns textarea", "What is shown?")
    page.fill("#answers textarea", "A dog.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".bars .bad")
    assert "reads only text" in get_text(page, ".bars")
    check_accessibility(page)
    drop(page, images[1], "#turns .turn")
    page.wait_for_selector("#alert .trouble")
    assert "demo reads only text" in get_text(page, "#alert")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_page_with_images_is_accessible(
    open_page: OpenPage, playground_url: str, images: list[Path], width: int, dark: bool
) -> None:
    page = open_page(playground_url, width, dark=dark)
    wait(page, READY)
    add(page, *images)
    score(page)
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
