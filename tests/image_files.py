"""Small image files, and conversations that show them."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


def make_image(width: int = 84, height: int = 56, shade: int = 0) -> Image.Image:
    """Return an image with a pattern that depends on `shade` (0 to 255)."""
    gradient = Image.linear_gradient("L").resize((width, height))
    return Image.merge(
        "RGB", (gradient, gradient.rotate(180), Image.new("L", (width, height), shade))
    )


def encode_image(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def to_uri(file: bytes, media_type: str = "image/png") -> str:
    """Return the data URI of a file."""
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def ask(*sources: Any, question: str = "What is shown?") -> dict[str, Any]:
    """Return a user's message with images in OpenAI's parts before the question."""
    parts = [{"type": "image_url", "image_url": {"url": source}} for source in sources]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def answer(text: str = "A pattern.") -> dict[str, Any]:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}
