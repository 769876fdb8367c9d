"""Images as a client sends them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from stub_service import StubService, conversation

from rm_core import InvalidImageError
from serve.client.images import find_media_type, to_wire


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decode(part: Any) -> tuple[str, bytes]:
    assert part.keys() == {"type", "image_url"}
    assert part["type"] == "image_url"
    header, _, payload = part["image_url"]["url"].partition(",")
    return header, base64.b64decode(payload, validate=True)


@pytest.mark.parametrize("name", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_bytes_are_sent_unchanged_with_their_media_type(name: str) -> None:
    image = encode(Image.new("RGB", (3, 2), "red"), name)
    assert find_media_type(image) == f"image/{name}"
    for source in (image, {"bytes": image, "path": "a.bin"}):
        wire = to_wire({"type": "image", "image": source})
        assert decode(wire) == (f"data:image/{name};base64", image)


def test_other_bytes_are_left_to_the_service() -> None:
    assert find_media_type(b"<svg/>") is None
    wire = to_wire({"type": "image", "image": b"<svg/>"})
    assert decode(wire) == ("data:application/octet-stream;base64", b"<svg/>")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_image_of_pillow_is_sent_as_png(mode: str) -> None:
    image = Image.effect_noise((5, 4), 60).convert(mode)
    header, png = decode(to_wire({"type": "image", "image": image}))
    assert header == "data:image/png;base64"
    with Image.open(io.BytesIO(png)) as sent:
        assert sent.convert("RGBA").tobytes() == image.convert("RGB").convert("RGBA").tobytes() or (
            mode in ("LA", "RGBA") and sent.tobytes() == image.tobytes()
        )


@pytest.mark.parametrize("mode", ["RGBA", "PA", "RGBa"])
def test_transparency_of_pillow_image_is_sent(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 2, 2))
    image = image.quantize(4).convert("PA") if mode == "PA" else image.convert(mode)
    _, png = decode(to_wire({"type": "image", "image": image}))
    with Image.open(io.BytesIO(png)) as sent:
        assert sent.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pillow_image_without_range_of_colours_is_refused(mode: str) -> None:
    with pytest.raises(InvalidImageError, match=f"mode {mode}"):
        to_wire({"type": "image", "image": Image.new(mode, (4, 2), 1)})


def test_orientation_of_pillow_image_is_sent() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encode(Image.new("RGB", (4, 2)), "jpeg", exif=exif)
    with Image.open(io.BytesIO(jpeg)) as image:
        _, png = decode(to_wire({"type": "image", "image": image}))
    with Image.open(io.BytesIO(png)) as sent:
        assert sent.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "text"}],
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": []},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": {"bytes": None, "path": "a.png"}},
        {"type": "image", "image": 7},
        None,
    ],
)
def test_other_values_are_unchanged(value: object) -> None:
    assert to_wire(value) == value


def test_client_sends_images_at_any_depth(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    image = encode(Image.new("RGB", (3, 2)), "png")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    sent = [{"role": "user", "content": content}, *conversation(1.0)[1:]]
    assert make_client(stub.url).score([sent, {"messages": sent}]) == [1.0, 1.0]
    (body,) = stub.bodies
    first, second = body["conversations"]
    assert second == {"messages": first}
    assert decode(first[0]["content"][0])[1] == image
    assert first[0]["content"][1] == content[1]
