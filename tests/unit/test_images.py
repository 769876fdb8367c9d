"""Decoding images: formats, limits before pixels, colours, and hostile files."""

from __future__ import annotations

import base64
import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from transformers.image_utils import load_image

from rm_core.errors import InvalidImageError, ModelLoadError
from rm_core.inputs import images
from rm_core.inputs.images import ImageLimits, decode_image, open_image, require_pillow

LIMITS = ImageLimits()
WHERE = "image 2 of message 0"


def noise(size: tuple[int, int] = (37, 23), mode: str = "RGB", seed: int = 0) -> Image.Image:
    num_bytes = len(Image.new(mode, size).tobytes())
    return Image.frombytes(mode, size, random.Random(seed).randbytes(num_bytes))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """The PNG with a chunk after its header, which ends at byte 33."""
    return png[:33] + chunk(name, content) + png[33:]


def decode(source: Any, limits: ImageLimits = LIMITS) -> Image.Image:
    image = decode_image(source, limits, WHERE)
    assert image.mode == "RGB"
    return image


def error_of(source: Any, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(source, limits, WHERE)
    message = caught.value.detail
    assert caught.value.code == "invalid_image"
    assert message.startswith(WHERE)
    assert len(message) < 400
    return message


PNG = encode(noise())
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
    ],
)
def test_ordinary_files_are_decoded_as_transformers_does(
    kind: str, mode: str, options: dict[str, Any]
) -> None:
    data = encode(noise().convert(mode), kind, **options)
    expected = load_image(base64.b64encode(data).decode())
    for source in (data, base64.b64encode(data).decode(), Image.open(io.BytesIO(data))):
        assert decode(source).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
        f" \n{BASE64}\r\n",
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;Base64,{BASE64}",
        f"data:image/png;name=a.png;base64,{BASE64}",
        f"data:image/png;base64;charset=utf-8,{BASE64}",
        f"data:image;base64,{BASE64}",
        f"data:;base64, {BASE64}",
    ],
)
def test_base64_and_data_uris(text: str) -> None:
    assert decode(text).tobytes() == noise().tobytes()


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("https://example.org/cat.png", "is an address (`https:`)"),
        ("file:///etc/passwd", "is an address (`file:`)"),
        ("C:\\cat.png", "is an address (`C:`)"),
        ("folder/cat.png", "no '.' (character 10); paths and addresses are never opened"),
        ("data:image/png", "is a data URI without a comma"),
        (f"data:image/png,{BASE64}", "is a data URI without base64"),
        ("data:image/svg+xml,%3Csvg", "is an SVG"),
        ("data:image/png;base64,iVBOR%2Bw", "which has no '%'"),
        (BASE64[:40] + "=" + BASE64[40:], "which has no '='"),
        (BASE64.rstrip("=") + "ü", "which has no 'ü'"),
        (BASE64.rstrip("=")[: len(BASE64) // 8 * 4 + 1], "is base64 that is cut off"),
        ("", "is empty"),
        (b"", "is empty"),
        ("data:image/png;base64,", "is empty"),
        (None, "is null; send a data URI"),
        ({"url": "x"}, "is an object; send a data URI"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "is an SVG"),
        (b"<?xml version='1.0'?>\n<!-- cat -->\n<svg></svg>", "is an SVG"),
        (b"%PDF-1.7", "is not an image of a known format; PNG, JPEG, WebP, GIF and BMP"),
        (b"cat", "is not an image of a known format"),
    ],
)
def test_sources_that_are_not_images(source: Any, part: str) -> None:
    assert part in error_of(source)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "EPS", "PCX"])
def test_other_formats_of_pillow_are_not_parsed(kind: str) -> None:
    assert "is not an image of a known format" in error_of(encode(noise(), kind))


def test_messages_quote_no_more_of_the_source_than_a_character() -> None:
    secret = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo"
    for source in (secret, secret + "!", f"data:{secret},x", f"https://{secret}"):
        assert secret[:8] not in error_of(source)


def test_encoded_size_is_limited_before_base64_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ImageLimits(max_image_bytes=len(PNG))
    assert decode(PNG, exact).size == decode(BASE64, exact).size == (37, 23)
    below = ImageLimits(max_image_bytes=len(PNG) - 1)
    monkeypatch.setattr(images.binascii, "a2b_base64", None)
    for source in (PNG, BASE64, f"data:image/png;base64,{BASE64}"):
        message = error_of(source, below)
        assert f"has {len(PNG):,} bytes; at most {len(PNG) - 1:,} are allowed" in message


@pytest.mark.parametrize("kind", images.FORMATS)
def test_pixels_are_limited_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = encode(Image.new("1" if kind == "PNG" else "L", (4096, 4096)), kind)
    allowed = ImageLimits(max_image_bytes=2**25)
    assert open_image(bomb, allowed, WHERE).size == (4096, 4096)
    limits = ImageLimits(max_image_bytes=2**25, max_image_pixels=4096 * 4096 - 1)

    def load(self: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    message = error_of(bomb, limits)
    assert "is 4096 x 4096 pixels; at most 16,777,215 pixels are allowed" in message


def test_a_size_that_pillow_itself_refuses_is_an_error_of_the_image() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9)))
    assert "has too many pixels; at most 16,777,216 are allowed" in error_of(bomb)


def test_an_image_without_pixels() -> None:
    assert "is 0 x 5 pixels: it has no pixels" in error_of(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_compressed_metadata_is_not_expanded(name: bytes) -> None:
    zipped = zlib.compress(bytes(64 * 2**20), 9)
    content = b"k\0\0" + zipped if name != b"iTXt" else b"k\0\1\0\0\0" + zipped
    assert "cannot be decoded" in error_of(with_chunk(PNG, name, content))


def test_many_scans_of_a_jpeg_are_refused() -> None:
    data = encode(noise(), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 20 + data[-2:]).size == (37, 23)
    message = error_of(data[:-2] + scan * 100 + data[-2:])
    assert "is a JPEG of more than 100 scans" in message


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_files_are_refused(kind: str) -> None:
    frames = [noise(seed=seed) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 3
    for source in (data, Image.open(io.BytesIO(data))):
        assert "is animated; send one frame as a still image" in error_of(source)


def test_a_photo_with_previews_is_its_first_frame() -> None:
    data = encode(noise(), "MPO", save_all=True, append_images=[noise(seed=1)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    expected = load_image(base64.b64encode(data).decode())
    assert decode(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", images.FORMATS)
def test_truncated_files_are_refused(kind: str) -> None:
    data = encode(noise((64, 64)), kind)
    for length in (3, 12, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        error_of(data[:length])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_transformers(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(), "JPEG", exif=exif)
    expected = load_image(base64.b64encode(data).decode())
    result = decode(data)
    assert result.size == ((37, 23) if orientation < 5 else (23, 37))
    assert result.tobytes() == expected.tobytes()


def on_white(image: Image.Image) -> bytes:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white.tobytes()


def test_transparent_images_are_pasted_on_white() -> None:
    rgba = noise(mode="RGBA")
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert decode(encode(rgba, kind, **options)).tobytes() == on_white(rgba)
    assert decode(rgba).tobytes() == on_white(rgba)
    grey = noise(mode="LA")
    assert decode(encode(grey)).tobytes() == on_white(grey.convert("RGBA"))
    assert decode(grey.convert("PA")).size == grey.size


def test_transparent_colours_are_white() -> None:
    image = Image.new("RGB", (4, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    expected = [(10, 20, 30), (255, 255, 255), (10, 20, 30), (10, 20, 30)]
    data = encode(image, transparency=(1, 2, 3))
    assert list(decode(data).get_flattened_data()) == expected
    palette = Image.new("P", (4, 1), 0)
    palette.putpalette([10, 20, 30, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert list(decode(encode(palette, kind, transparency=1)).get_flattened_data()) == expected
    assert list(decode(encode(palette)).get_flattened_data())[1] == (1, 2, 3)
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((0, 0), 9)
    assert list(decode(encode(grey, transparency=9)).get_flattened_data()) == [
        (255, 255, 255),
        (7, 7, 7),
    ]


def test_grey_of_16_bits_is_scaled() -> None:
    values = [0, 255, 256, 32768, 65535]
    image = Image.frombytes("I;16", (5, 1), struct.pack("<5H", *values))
    for source in (image, encode(image), encode(image, transparency=256)):
        reds = list(decode(source).getchannel("R").get_flattened_data())
        assert reds == [value // 256 for value in values]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_colours_without_a_range_are_refused(mode: str) -> None:
    assert f"(PIL's mode {mode}); convert it" in error_of(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "CMYK", "HSV", "LAB"])
def test_other_colour_spaces_as_transformers(mode: str) -> None:
    image = noise(mode=mode)
    assert decode(image).tobytes() == load_image(image).tobytes()


def test_the_image_of_the_caller_is_not_changed() -> None:
    image = noise(mode="RGBA")
    before = image.tobytes()
    decode(image)
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def seeds() -> Iterator[bytes]:
    image = noise((24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield encode(image, exif=exif)
    yield encode(image.convert("P"), transparency=3)
    yield encode(Image.frombytes("I;16", (6, 4), bytes(range(48))), transparency=5)
    yield encode(image, "JPEG", exif=exif)
    yield encode(image, "JPEG", progressive=True)
    yield encode(image.convert("CMYK"), "JPEG")
    yield encode(image, "MPO", save_all=True, append_images=[image])
    yield encode(image, "WEBP")
    yield encode(image.convert("RGBA"), "WEBP", lossless=True, exif=exif)
    yield encode(image, "GIF")
    yield encode(image, "GIF", save_all=True, append_images=[noise((24, 16), seed=1)])
    yield encode(image, "BMP")
    yield encode(image.convert("P"), "BMP")


SEEDS = list(seeds())


def mutate(data: bytes, random: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 6)):
        start = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[start : start + 1] = random.randbytes(1)
            case 1:
                del changed[start : start + random.randint(1, 40)]
            case 2:
                changed[start:start] = changed[: random.randint(1, 40)]
            case 3:
                changed[start : start + 4] = random.choice(
                    [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]
                )
            case 4:
                changed[start : start + 1] = bytes([changed[start - 1] ^ 1 << random.randrange(8)])
    return bytes(changed)


@given(st.sampled_from(SEEDS), st.randoms(use_true_random=False))
def test_mutated_files_are_decoded_or_refused(data: bytes, random: random.Random) -> None:
    for _ in range(8):
        try:
            decode(mutate(data, random), ImageLimits(max_image_pixels=2**16))
        except InvalidImageError:
            continue


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_and_bytes_are_refused(source: str | bytes) -> None:
    error_of(source)


def test_pillow_is_needed_only_to_decode() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None; "
        "import rm_core.inputs.images, rm_core.inputs.image_processor, rm_core.scorer"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "require_pillow", require_pillow.__wrapped__)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.delattr("PIL.Image")
    with pytest.raises(ModelLoadError, match=r"skyreward\[vision\]"):
        images.require_pillow()
