"""Images of messages as references, so that files of an evaluation do not contain images.

A part `{"type": "image", "image": BYTES}` of a content refers to its image as
`{"type": "image", "sha256": HEX, "num_bytes": SIZE}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from rm_core.inputs.conversations import Messages, get_images, map_images


def refer_to_images(messages: Messages) -> Messages:
    """Return messages with a reference in place of each image."""
    return map_images(messages, _build_reference)


def restore_images(messages: Messages, images: Mapping[str, bytes]) -> Messages:
    """Return messages with an image in place of each reference.

    Args:
        messages: messages of `refer_to_images`.
        images: images by SHA-256, which must include all that are referred to.
    """
    return map_images(messages, lambda part: {"type": "image", "image": images[part["sha256"]]})


def collect_images(conversations: Iterable[Messages]) -> dict[str, bytes]:
    """Return the images of conversations by SHA-256."""
    images = [image for messages in conversations for image, _ in get_images(messages)]
    return {_compute_digest(image): image for image in images}


def _build_reference(part: dict[str, Any]) -> dict[str, Any]:
    image = part.get("image")
    if not isinstance(image, bytes):
        return part
    return {"type": "image", "sha256": _compute_digest(image), "num_bytes": len(image)}


def _compute_digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()
