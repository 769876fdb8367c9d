"""Images of a benchmark's items: read from files, and described in reports.

An image that a row gives as text is a data URI, base64, or a path relative to the folder of the
row's file. Nothing outside that folder is read, and no address is fetched. Images are not decoded
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_core import BenchmarkDataError, InvalidImageError
from rm_core.benchmarks.base import Item
from rm_core.inputs.conversations import map_images
from rm_core.inputs.images import decode_base64
from serve.jobs.inputs.image_files import ImageFiles, is_encoded_image
from serve.jobs.inputs.image_references import refer_to_images

_MAX_BYTES = 64 << 20


def load_images(item: Item, file: Path | None) -> Item:
    """Return an item whose images are bytes.

    Args:
        item: item as a benchmark reads it.
        file: path of the row's file.

    Raises:
        BenchmarkDataError: an image cannot be read.
    """

    def load(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "image": _load_image(part["image"], file, item.label)}

    return replace(item, prompt=map_images(item.prompt, load))


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


def _load_image(source: bytes | str, file: Path | None, label: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        if is_encoded_image(source):
            return decode_base64(source, _MAX_BYTES, "the image")
        return ImageFiles(file, _MAX_BYTES).read(source)
    except InvalidImageError as error:
        raise BenchmarkDataError(f"{label}: {error.detail}") from error
