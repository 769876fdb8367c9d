"""Put the images of a row into its messages, as the data sets of trainers keep them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import InvalidConversationError

MARKER = "<image>"
"""Place of an image in text, as LLaMA-Factory and ms-swift write it."""
SOURCE_KEYS = ("image", "image_url", "path", "url", "base64")
"""Keys of a content part that may hold its image."""


def is_place(part: object) -> bool:
    """Return whether a content part is the place of an image that is kept elsewhere."""
    if not isinstance(part, Mapping) or not is_image(part):
        return False
    sources = (part.get(key) for key in SOURCE_KEYS)
    return all(source is None or (isinstance(source, bytes) and not source) for source in sources)


def is_image(part: object) -> bool:
    """Return whether a content part is an image or the place of one."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url", "input_image")


def fill_places(messages: Sequence[Any], images: Sequence[Any]) -> list[Any]:
    """Return messages with a row's images in their places, in order, if there is one for each.

    The places are the parts `{"type": "image"}` without an image. Without such parts, they are the
    texts `<image>`; without these, all images come before the text of the first user message, as
    TRL puts them, unless a message has an image already.
    """
    contents = [_get_parts(message) for message in messages]
    num_places = _count_places(contents)
    if images and not num_places:
        if any(MARKER in text for parts in contents for text in _list_texts(parts)):
            contents = [_split_markers(parts) for parts in contents]
        elif not has_images(messages):
            _insert_places(messages, contents, len(images))
        num_places = _count_places(contents)
    if num_places != len(images):
        raise InvalidConversationError(
            f"the images do not fit the prompt: it has places for {num_places}, and "
            f'{len(images)} are given; give one for each {{"type": "image"}}, or for each {MARKER} '
            "in its text"
        )
    if not images:
        return list(messages)
    left = iter(images)
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": next(left)} if is_place(part) else part for part in parts
            ],
        }
        if any(map(is_place, parts))
        else message
        for message, parts in zip(messages, contents, strict=True)
    ]


def has_images(messages: Sequence[Any]) -> bool:
    """Return whether a message has an image in its content, and not only the place of one."""
    parts = (part for message in messages for part in _get_parts(message))
    return any(is_image(part) and not is_place(part) for part in parts)


def _get_parts(message: object) -> list[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list | tuple) else []


def _list_texts(parts: Sequence[Any]) -> list[str]:
    texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    return [text for text in texts if isinstance(text, str)]


def _count_places(contents: Sequence[Sequence[Any]]) -> int:
    return sum(is_place(part) for parts in contents for part in parts)


def _split_markers(parts: Sequence[Any]) -> list[Any]:
    split: list[Any] = []
    for part in parts:
        texts = [text for one in _list_texts([part]) for text in one.split(MARKER)]
        if len(texts) < 2:
            split.append(part)
            continue
        for index, text in enumerate(texts):
            split += [{"type": "image"}] if index else []
            split += [{"type": "text", "text": text}] if text else []
    return split


def _insert_places(messages: Sequence[Any], contents: list[list[Any]], num_images: int) -> None:
    for message, parts in zip(messages, contents, strict=True):
        if parts and message.get("role") == "user":
            parts[:0] = [{"type": "image"}] * num_images
            return
