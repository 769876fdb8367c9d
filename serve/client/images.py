"""Images of messages in the form in which a client sends them: data URIs.

Bytes and files are sent as they are, not decoded. Pillow is needed only by a caller who gives its
images.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_core import InvalidImageError
from rm_core.inputs.conversations import get_image_source

MAX_FILE_BYTES = 24 * 2**20
"""Maximum size of an image's file: as base64, a service's default limit of a body, 32 MiB."""

_SIGNATURES: Mapping[str, re.Pattern[bytes]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/bmp": re.compile(rb"BM"),
    "image/tiff": re.compile(rb"II\*\x00|MM\x00\*"),
}
_UNKNOWN_TYPE = "application/octet-stream"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def to_wire(value: Any) -> Any:
    """Return messages, or JSON data that contains messages, with images as data URIs.

    A content part whose image is bytes (an encoded file), a `Path`, a PIL image (sent as PNG), or
    an object of `datasets` with `bytes`, becomes `{"type": "image_url", "image_url": {"url":
    "data:image/png;base64,..."}}`. So does such an image that is itself an item of a list, as in
    `"content": [image, "What is this?"]`. All other values, such as text, are returned unchanged.
    """
    if isinstance(value, Mapping):
        if (image := _get_bytes(get_image_source(value))) is not None:
            return _build_part(image)
        return {key: to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        images = map(_get_bytes, value)
        return [
            to_wire(item) if image is None else _build_part(image)
            for item, image in zip(value, images, strict=True)
        ]
    return value


def find_media_type(image: bytes) -> str | None:
    """Return the media type of an image by the first bytes of its file; None if unknown."""
    for media_type, signature in _SIGNATURES.items():
        if signature.match(image):
            return media_type
    return None


def _get_bytes(source: object) -> bytes | None:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Path):
        return _read_file(source)
    pillow = sys.modules.get("PIL.Image")  # imported if the caller has an image of Pillow
    if pillow is None or not isinstance(source, pillow.Image):
        return None
    return _encode_png(source)


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InvalidImageError(f"the image {path} is not a file; give the path of a file")
        if (num_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise InvalidImageError(
                f"the image {path} has {num_bytes:,} bytes, and a request has at most "
                f"{MAX_FILE_BYTES:,}; reduce the image"
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidImageError(
            f"the image {path} cannot be read: {error.strerror}; check the file"
        ) from error


def _encode_png(image: Any) -> bytes:
    if image.mode in ("I", "F"):
        raise InvalidImageError(
            f"a PIL image has numbers without a fixed range as colours (mode {image.mode}); "
            'convert it to "RGB"'
        )
    try:
        # The service applies the orientation of EXIF, as it does to files.
        exif = image.getexif()
        if image.mode not in _PNG_MODES:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        file = io.BytesIO()
        image.save(file, "PNG", **({"exif": exif} if exif else {}))
    # A PIL image decodes its file only here.
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidImageError(
            f"a PIL image cannot be encoded as PNG: {error}; give another image"
        ) from error
    return file.getvalue()


def _build_part(image: bytes) -> dict[str, Any]:
    media_type = find_media_type(image) or _UNKNOWN_TYPE
    url = f"data:{media_type};base64,{base64.b64encode(image).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
