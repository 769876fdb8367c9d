"""Images in messages of clients and of reward functions for trainers."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_service import StubService

from rm_core import InvalidConversationError
from rm_core.inputs.sample_image import write_png
from serve.client import ScoringFailedError, ServiceError
from serve.client.image_places import fill_places
from serve.client.images import to_wire
from serve.client.integrations import base, verl
from serve.client.integrations.trl import TRLJudgeReward, TRLReward

WIDE, HIGH = write_png(100, 60), write_png(57, 90)
PLACE = {"type": "image"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def sent(file: bytes, media_type: str = "image/png") -> dict[str, Any]:
    url = f"data:{media_type};base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(*parts: Any, answer: str = "1") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]


def get_sent(stub: StubService) -> list[Any]:
    """Return the first content of each conversation that was sent."""
    return [c[0]["content"] for body in stub.bodies for c in body["conversations"]]


def test_bytes_paths_and_objects_of_datasets_are_sent_as_data_uris(
    stub: StubService, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff rest")
    conversations = [
        ask(text("Q"), image(WIDE)),
        ask(image(bytearray(WIDE))),
        ask(image(tmp_path / "a.jpg"), text("Q")),
        ask(image({"bytes": WIDE, "path": None}), image({"bytes": HIGH, "path": "x"})),
        ask(WIDE, "Q", tmp_path / "a.jpg"),
        ask(image(b"unknown")),
        ask(image(memoryview(WIDE)), {"type": "input_image", "image_url": tmp_path / "a.jpg"}),
        ask({"type": "image_url", "image_url": {"url": WIDE}}),
        [{"role": "user", "content": np.array([image(WIDE), text("Q")])}, *ask()[1:]],
    ]
    before = repr(conversations)
    assert make_client(stub.url).score(conversations) == [1.0] * 9
    jpeg = sent(b"\xff\xd8\xff rest", "image/jpeg")
    assert get_sent(stub) == [
        [text("Q"), sent(WIDE)],
        [sent(WIDE)],
        [jpeg, text("Q")],
        [sent(WIDE), sent(HIGH)],
        [sent(WIDE), "Q", jpeg],
        [sent(b"unknown", "application/octet-stream")],
        [sent(WIDE), jpeg],
        [sent(WIDE)],
        [sent(WIDE), text("Q")],
    ]
    assert repr(conversations) == before


@pytest.mark.parametrize(
    "source", ["a.jpg", "/etc/passwd", "data:image/png;base64,AAAA", {"url": "http://x/"}]
)
def test_text_is_sent_as_it_is(
    source: Any, stub: StubService, make_client: Callable[..., Any]
) -> None:
    make_client(stub.url).score([ask(image(source))])
    assert get_sent(stub) == [[image(source)]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "YCbCr"])
def test_pillow_images_are_sent_as_png_with_their_pixels(mode: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    original = image_module.open(io.BytesIO(WIDE)).convert(mode)
    (message,) = to_wire([{"role": "user", "content": [original]}])
    (part,) = message["content"]
    head, _, payload = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    received = image_module.open(io.BytesIO(base64.b64decode(payload)))
    assert received.convert("RGBA").tobytes() == original.convert("RGB").convert("RGBA").tobytes()


def test_unreadable_images_are_errors_before_sending(
    stub: StubService, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    cut_off = image_module.open(io.BytesIO(WIDE[: len(WIDE) // 2]))
    sources = [
        (tmp_path / "missing.png", "is not a file"),
        (tmp_path / "pipe.png", "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / "huge.png", "has 1,099,511,627,776 bytes"),
        (cut_off, "cannot be encoded as PNG"),
    ]
    client = make_client(stub.url)
    for source, message in sources:
        good, bad = client.results([ask(text("Q")), ask(image(source))])
        assert good.reward == 1.0
        assert bad.code == "invalid_image"
        assert message in bad.message
        with pytest.raises(ScoringFailedError, match=message):
            client.score([ask(image(source))])
        with pytest.raises(ServiceError, match=message) as caught:
            client.rank(ask(image(source))[:1], ["1", "2"])
        assert caught.value.error_code == "invalid_image"
    assert get_sent(stub) == [[text("Q")]] * len(sources)


def test_images_count_for_size_of_request_as_base64(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(stub.url, max_bytes=1_000_000)
    conversations = [ask(image(bytes(300_000)), answer=str(n)) for n in range(6)]
    assert client.score(conversations) == list(range(6))
    assert sorted(len(body["conversations"]) for body in stub.bodies) == [2, 2, 2]


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        (["A", "B"], ["x"], [[image("x"), text("A")], "B"]),
        (["<image>A<image>", "<image>"], ["x", "y", "z"], None),
        ([[PLACE, text("<image>")]], ["x"], [[image("x"), text("<image>")]]),
        ([[image("y"), PLACE]], ["x"], [[image("y"), image("x")]]),
        ([["A <image>B"]], ["x"], [[text("A "), image("x"), text("B")]]),
        (["A"], [], ["A"]),
        (["A <image>"], [], ["A <image>"]),
        ([[image("y")]], [], [[image("y")]]),
    ],
)
def test_places_are_filled_in_order(messages: Any, images: Any, expected: Any) -> None:
    given = [{"role": "user", "content": content} for content in messages]
    expected = expected or [[image("x"), text("A"), image("y")], [image("z")]]
    assert [m["content"] for m in fill_places(given, images)] == expected


@pytest.mark.parametrize(
    ("content", "images"),
    [([PLACE], []), ([PLACE], ["x", "y"]), ("<image><image>", ["x"]), ([image("y")], ["x"])],
)
def test_other_number_of_places_is_error(content: Any, images: list[Any]) -> None:
    with pytest.raises(InvalidConversationError, match=f"and {len(images)} are given"):
        fill_places([{"role": "user", "content": content}], images)


PROMPTS = {
    "string": "Q",
    "messages": [{"role": "user", "content": "Q"}],
    "places": [{"role": "user", "content": [PLACE, text("Q")]}],
    "prepared": [{"role": "user", "content": [image(WIDE), text("Q")]}],
    "marker": [{"role": "user", "content": "<image>Q"}],
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("column", ["images", "image"])
def test_trl_reward_reads_images_of_vision_datasets(
    prompt: str, column: str, stub: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(stub.url)
    value = [WIDE] if column == "images" else WIDE
    completions = [[{"role": "assistant", "content": str(n)}] for n in range(3)]
    rewards = TRLReward(client)([PROMPTS[prompt]] * 3, completions, **{column: [value] * 3})
    assert rewards == [0.0, 1.0, 2.0]
    assert get_sent(stub) == [[sent(WIDE), text("Q")]] * 3


def test_trl_reward_takes_prompts_as_trl_prepares_them(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    prepare = pytest.importorskip("trl.data_utils").prepare_multimodal_messages
    pillow = pytest.importorskip("PIL.Image").open(io.BytesIO(WIDE))
    given = [{"role": "user", "content": "Q"}]
    prompts = [prepare(given, images=[pillow]), prepare(given, images=[])]
    completions = [[{"role": "assistant", "content": "7"}]] * 2
    rewards = TRLReward(make_client(stub.url))(prompts, completions, images=[[pillow], []])
    assert rewards == [7.0, 7.0]
    first, second = get_sent(stub)
    assert [part["type"] for part in first] == ["image_url", "text"]
    assert first[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert second == [text("Q")]


def test_trl_reward_refuses_images_that_do_not_fit(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    prompts, completions = [PROMPTS["places"]], [[{"role": "assistant", "content": "1"}]]
    client = make_client(stub.url)
    with pytest.raises(ScoringFailedError, match="places for 1, and 2 are given"):
        TRLReward(client)(prompts, completions, images=[[WIDE, HIGH]])
    assert TRLReward(client, failed_reward=-1.0)(prompts, completions) == [-1.0]
    assert not stub.bodies


def test_trl_judge_gets_images_so_that_it_can_refuse_them(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    completions = [[{"role": "assistant", "content": str(n)}] for n in range(2)]
    TRLJudgeReward(make_client(stub.url))([PROMPTS["places"]] * 2, completions, image=[WIDE] * 2)
    (body,) = stub.bodies
    assert [response[0]["content"] for response in body["responses"]] == [
        [sent(WIDE), text("Q")]
    ] * 2


def test_verl_takes_images_of_extra_info(
    stub: StubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", stub.url)
    info = {"question": "<image>Q", "images": [{"bytes": WIDE, "path": None}]}
    with base.get_reward_client().client:
        assert verl.compute_score_batch(["d"], ["3"], [""], [info]) == [3.0]
    base._build_reward_client.cache_clear()
    assert get_sent(stub) == [[sent(WIDE), text("Q")]]
