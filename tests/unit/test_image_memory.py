"""The bound of decoded images: shares of clients, waiting, and what a request gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from image_files import answer, ask

from rm_core import Encoded, ScoreError
from rm_core.types import EncodedImage, PlacedImage
from serve.errors import RequestTooLargeError
from serve.scoring.image_memory import ImageMemory
from serve.scoring.tokenization import (
    InputSize,
    count_image_bytes,
    drop_pixels,
    estimate_sizes,
    split_into_slices,
)

LIMIT = 100


def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_client_waits_for_its_share_and_others_do_not() -> None:
    async def check() -> None:
        memory = ImageMemory()
        with memory.open_hold("a", LIMIT) as first, memory.open_hold("a", LIMIT) as second:
            await first.reserve(60)
            await second.reserve(60)  # over the limit by one reservation
            waiting = asyncio.create_task(first.reserve(10))
            await settle()
            assert not waiting.done()
            with memory.open_hold("b", LIMIT) as other:
                await other.reserve(30)  # holds nothing yet
                more = asyncio.create_task(other.reserve(10))
                second.add(-60)
                await settle()
                assert more.done()  # below half of the limit, and the limit is not reached
                assert not waiting.done()  # 60 is more than half of it
            first.add(-20)
            await settle()
            assert waiting.done()
            assert memory.num_bytes == first.num_bytes == 50
        assert memory.num_bytes == 0

    run(check())


def test_everything_is_given_back_at_the_end() -> None:
    async def check() -> None:
        memory = ImageMemory()

        async def request() -> None:
            with memory.open_hold("a", LIMIT) as hold:
                await hold.reserve(LIMIT)
                await hold.reserve(1)

        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await settle()
        assert memory.num_bytes == LIMIT
        tasks[0].cancel()
        await settle()
        assert memory.num_bytes == LIMIT  # of the next one
        for task in tasks:
            task.cancel()
        await settle()
        assert memory.num_bytes == 0

    run(check())


def sizes_of(conversations: Sequence[object], **limits: int) -> list[InputSize]:
    return estimate_sizes(conversations, 10**9, **limits)


def test_image_is_a_slice_of_its_own_and_costs_little_again() -> None:
    data = "A" * 10_000_000
    prompt = ask(data)
    group = [[prompt, answer(str(number))] for number in range(100)]
    first, *others = sizes_of(group)
    assert first.num_characters > 50_000 > 10 * others[0].num_characters
    assert [size.num_new for size in (first, *others)] == [1] + 99 * [0]
    slices = list(split_into_slices(group, [first, *others]))
    assert [len(slice_) for slice_, _ in slices][:2] == [1, 25]
    assert {size.num_images for _, size in slices} == {1}
    equal = [[ask("".join(data)), answer(str(number))] for number in range(100)]
    assert sizes_of(equal) == [first, *others]


def test_images_are_new_unless_the_conversation_before_has_them() -> None:
    conversations = [[ask(*sources), answer()] for sources in ("ab", "abc", "c", "a")]
    assert [size.num_new for size in sizes_of(conversations)] == [2, 1, 0, 1]
    slices = list(split_into_slices(conversations, sizes_of(conversations)))
    assert [(len(slice_), size.num_images) for slice_, size in slices] == [(1, 2), (1, 3), (2, 2)]
    with pytest.raises(RequestTooLargeError, match=r"first 2 .* have 3 different images"):
        sizes_of(conversations, max_images=2)


def test_other_parts_still_count_as_text() -> None:
    """Only what is read as an image may be left out: a template may write everything else."""
    text = "x" * 30_000
    image = {"type": "image", "image": text}
    call = {"type": "function", "function": {"name": "f", "arguments": image}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "user", "content": [{"type": "video", "image": text}]},
        {"role": "user", "content": "", "image": image},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": [{"type": "image", "url": text}]},
    ]
    for message in messages:
        (size,) = sizes_of([[message, answer()]])
        assert 30_000 < size.num_characters < 31_000
        assert size.num_images == 0


def test_pixels_are_counted_once_and_dropped() -> None:
    image = EncodedImage(b"\1" * 18_816, 56, 112, 14, 2, 2, bytes(range(32)), 7)
    other = EncodedImage(b"\2" * 2_352, 28, 28, 14, 2, 2, bytes(32), 7)
    placed = (PlacedImage(1, image), PlacedImage(20, other))
    encoded: list[Encoded | ScoreError] = [
        Encoded("text", (1, *image.token_ids, *other.token_ids), (9,), images=placed),
        Encoded("text", (1, *image.token_ids), (9,), images=placed[:1]),
        ScoreError("code", "message"),
    ]
    assert count_image_bytes(encoded) == 18_816 + 2_352
    dropped = [drop_pixels(item) for item in encoded]
    assert count_image_bytes(item for item in dropped) == 0
    assert dropped == encoded  # but for the pixels, which do not count
