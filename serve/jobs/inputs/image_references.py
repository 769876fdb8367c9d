"""Images of messages as references, so that files of an evaluation do not contain images.

A part `{"type": "image", "image": BYTES}` of a content refers to its image as
`{"type": "image", "sha256": HEX, "num_bytes": SIZE}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rm_core.inputs.conversations import Messages


def refer_to_images(messages: Messages) -> Messages:
    """Return messages with a reference in place of each image."""
    return _convert_images(messages, _build_reference)


def restore_images(messages: Messages, images: Mapping[str, bytes]) -> Messages:
    """Return messages with an image in place of each reference.

    Args:
        messages: messages of `refer_to_images`.
        images: images by SHA-256, which must include all that are referred to.
    """
    return _convert_images(
        messages, lambda part: {"type": "image", "image": images[part["sha256"]]}
    )


def collect_images(conversations: Iterable[Messages]) -> dict[str, bytes]:
    """Return the images of conversations by SHA-256."""
    images: dict[str, bytes] = {}

    def collect(part: Mapping[str, Any]) -> Mapping[str, Any]:
        images[_build_reference(part)["sha256"]] = part["image"]
        return part

    for messages in conversations:
        _convert_images(messages, collect)
    return images


def _build_reference(part: Mapping[str, Any]) -> Mapping[str, Any]:
    image = part.get("image")
    if not isinstance(image, bytes):
        return part
    digest = hashlib.sha256(image).hexdigest()
    return {"type": "image", "sha256": digest, "num_bytes": len(image)}


def _convert_images(
    messages: Messages, convert: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Messages:
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                convert(part) if part["type"] == "image" else part for part in message["content"]
            ],
        }
        for message in messages
    ]
