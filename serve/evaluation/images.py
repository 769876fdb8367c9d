"""Images of a benchmark's items: read from files, and described in reports.

An image that a row gives as text is a data URI, base64, or a path relative to the folder of the
row's file. Nothing outside that folder is read, and no address is fetched. Images are not decoded
here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rm_core import BenchmarkDataError, InvalidImageError
from rm_core.benchmarks.base import Item
from rm_core.text import quote
from serve.client.images import find_media_type
from serve.jobs.inputs.image_files import ImageFiles
from serve.jobs.inputs.image_references import refer_to_images

_MAX_BYTES = 64 << 20


def load_images(item: Item, file: str) -> Item:
    """Return an item whose images are bytes.

    Args:
        item: item as a benchmark reads it.
        file: path of the row's file.

    Raises:
        BenchmarkDataError: an image cannot be read.
    """
    if all(isinstance(message["content"], str) for message in item.prompt):
        return item
    prompt = [
        {
            **message,
            "content": [
                {**part, "image": _load_image(part["image"], file, item.label)}
                if part["type"] == "image"
                else part
                for part in message["content"]
            ],
        }
        for message in item.prompt
    ]
    return replace(item, prompt=prompt)


def describe_content(message: Mapping[str, Any]) -> str:
    """Return the text of a message, with a line for each image: its size and SHA-256."""
    content = refer_to_images([dict(message)])[0]["content"]
    if isinstance(content, str):
        return content
    return "".join(
        part["text"]
        if part["type"] == "text"
        else f"[image of {part['num_bytes']:,} bytes, SHA-256 {part['sha256']}]\n"
        for part in content
    )


def _load_image(source: bytes | str, file: str, label: str) -> bytes:
    if isinstance(source, bytes):
        return source
    if source[:5].lower() == "data:":
        header, _, payload = source.partition(",")
        image = _decode_base64(payload) if header.lower().endswith(";base64") else None
        if image is None:
            raise BenchmarkDataError(
                f"{label}: the image is {quote(source)}, which is not a valid data URI; it must be "
                "data:image/png;base64,... with base64 after the comma"
            )
        return image
    image = _decode_base64(source)
    if image is not None and find_media_type(image) is not None:
        return image
    try:
        return ImageFiles(file, _MAX_BYTES).read(source)
    except InvalidImageError as error:
        raise BenchmarkDataError(f"{label}: {error.detail}") from error


def _decode_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True) or None
    except (binascii.Error, ValueError):
        return None
