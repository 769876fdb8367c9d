"""Images of messages in the form in which a client sends them: data URIs.

Bytes are sent as they are, not decoded. Pillow is needed only by a caller who gives its images.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Mapping
from typing import Any

_SIGNATURES: Mapping[str, re.Pattern[bytes]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/bmp": re.compile(rb"BM"),
    "image/tiff": re.compile(rb"II\*\x00|MM\x00\*"),
}
_UNKNOWN_TYPE = "application/octet-stream"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


def to_wire(value: Any) -> Any:
    """Return messages, or JSON data that contains messages, with images as data URIs.

    A part `{"type": "image", "image": SOURCE}` becomes `{"type": "image_url", "image_url":
    {"url": "data:image/png;base64,..."}}` if SOURCE is bytes, a PIL image (sent as PNG), or an
    object of `datasets` with `bytes`. All other values, such as text, are returned unchanged.
    """
    if isinstance(value, Mapping):
        if value.get("type") == "image" and (image := _get_bytes(value.get("image"))) is not None:
            return {"type": "image_url", "image_url": {"url": _build_data_uri(image)}}
        return {key: to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    return value


def find_media_type(image: bytes) -> str | None:
    """Return the media type of an image by the first bytes of its file; None if unknown."""
    for media_type, signature in _SIGNATURES.items():
        if signature.match(image):
            return media_type
    return None


def _get_bytes(source: object) -> bytes | None:
    if isinstance(source, Mapping):
        source = source.get("bytes")
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    pillow = sys.modules.get("PIL.Image")  # imported if the caller has an image of Pillow
    if pillow is None or not isinstance(source, pillow.Image):
        return None
    # The service applies the orientation of EXIF, as it does to files.
    exif = source.getexif()
    image = source if source.mode in _PNG_MODES else source.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", **({"exif": exif} if exif else {}))
    return file.getvalue()


def _build_data_uri(image: bytes) -> str:
    media_type = find_media_type(image) or _UNKNOWN_TYPE
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
