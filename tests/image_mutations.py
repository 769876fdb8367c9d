"""Bodies with images that nobody should send: damaged files, bombs, wrong URIs, wrong parts.

Each is drawn from a seed and a number alone, so that it can be made again.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from image_files import answer, encode_image, make_image
from PIL import Image

_PATHS = ("/v1/score", "/v1/rank", "/v1/render", "/v1/compare", "/classify", "/score")
_ADDRESSES = (
    "http://127.0.0.1:1/x.png", "https://[::1]/x.png", "file:///etc/passwd", "/etc/passwd",
    "//127.0.0.1/x", "gopher://127.0.0.1:1/", "blob:http://127.0.0.1/1", "\\\\127.0.0.1\\x",
)  # fmt: skip
_TYPES: tuple[Any, ...] = (
    "image_url",
    "input_image",
    "image",
    "text",
    "video_url",
    "image_embeds",
    "",
    None,
    7,
    [],
)
_VALUES: tuple[Any, ...] = (None, True, 0, -1.5, "", " ", [], {}, [[]], {"url": None}, {"url": {}})


@cache
def build_files() -> tuple[bytes, ...]:
    """Return valid files of every supported format and several modes."""
    image = make_image(90, 60)
    return (
        encode_image(image),
        encode_image(image.convert("RGBA")),
        encode_image(image.convert("P")),
        encode_image(image.convert("L").convert("I;16")),
        encode_image(image.convert("1")),
        encode_image(image, "JPEG"),
        encode_image(image, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        encode_image(image.convert("CMYK"), "JPEG"),
        encode_image(image, "WEBP"),
        encode_image(image, "WEBP", lossless=True),
        encode_image(image, "GIF"),
        encode_image(image, "BMP"),
    )


@cache
def build_bombs() -> tuple[bytes, ...]:
    """Return small files that claim or hold much more than they weigh."""
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(200)]
    more = {"save_all": True, "append_images": frames[1:]}
    png = build_files()[0]
    return (
        *(
            claim_size(png, *size)
            for size in ((0, 5), (1, 2**31 - 1), (60_000, 60_000), (4096, 4096))
        ),
        encode_image(Image.new("L", (4_000, 4_000))),
        encode_image(Image.new("1", (100, 160_000))),
        encode_image(Image.new("RGB", (1, 1))),
        encode_image(Image.new("RGB", (3, 900))),
        encode_image(frames[0], "GIF", **more),
        encode_image(frames[0], "WEBP", **more),
        encode_image(frames[0], "PNG", **more),
        add_chunk(png, b"zTXt", b"key\0\0" + zlib.compress(bytes(50_000_000))),
        add_chunk(png, b"iCCP", b"key\0\0" + zlib.compress(bytes(50_000_000))),
        add_chunk(png, b"tEXt", b"key\0" + bytes(500_000)),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"II*\0\x08\0\0\0" + bytes(100),
    )


def claim_size(png: bytes, width: int, height: int) -> bytes:
    """Return a PNG file whose header tells another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def add_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """Return a PNG file with one more chunk after its header."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def _flip(chance: random.Random) -> bytes:
    changed = bytearray(chance.choice(build_files()))
    for _ in range(chance.choice((1, 4, 30))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random) -> bytes:
    file = chance.choice(build_files())
    return file[: chance.randrange(len(file))]


def _join(chance: random.Random) -> bytes:
    first, second = chance.choices(build_files(), k=2)
    return first[: chance.randrange(len(first))] + second[chance.randrange(len(second)) :]


def _bytes(chance: random.Random) -> bytes:
    return chance.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) + chance.randbytes(
        chance.choice((0, 1, 50, 5_000))
    )


def _bomb(chance: random.Random) -> bytes:
    return chance.choice(build_bombs())


def _valid(chance: random.Random) -> bytes:
    return chance.choice(build_files())


_FILES: tuple[Callable[[random.Random], bytes], ...] = (
    _flip, _flip, _cut, _join, _bytes, _bomb, _valid,
)  # fmt: skip


def _write_source(file: bytes, chance: random.Random) -> tuple[Any, str]:
    """Return the text of an image, often a wrong one, and what was done."""
    data = base64.b64encode(file).decode()
    media_type = chance.choice(("png", "jpeg", "svg+xml", "*", "png;charset=utf-8", "p\0g"))
    ways: dict[str, Any] = {
        "uri": f"data:image/{media_type};base64,{data}",
        "plain": data,
        "twice": base64.b64encode(data.encode()).decode(),
        "uri in base64": base64.b64encode(f"data:image/png;base64,{data}".encode()).decode(),
        "no comma": f"data:image/png;base64{data}",
        "no base64": f"data:image/png,{data}",
        "no type": f"data:;base64,{data}",
        "percent": f"data:image/png;base64,{data.replace('A', '%41')}",
        "upper": f"DATA:IMAGE/PNG;BASE64,{data}",
        "breaks": "\n".join(data[i : i + 60] for i in range(0, len(data), 60)),
        "unpadded": data.rstrip("=")[: chance.randrange(len(data) + 1)],
        "letters": data[:40] + chance.choice(("é", "\0", "\ud800", "😀", "==", "{")) + data[40:],
        "address": chance.choice(_ADDRESSES),
        "value": chance.choice(_VALUES),
    }
    way = chance.choice(("uri",) * 8 + tuple(ways))
    return ways[way], way


def _write_part(source: Any, chance: random.Random) -> Any:
    parts: tuple[Any, ...] = (
        {"type": "image_url", "image_url": {"url": source}},
        {"type": "image_url", "image_url": source},
        {"type": "input_image", "image_url": source, "detail": "high"},
        {"type": "image", "image": source},
        {"type": "image", "image": {"bytes": source, "path": "/etc/passwd"}},
        {"type": chance.choice(_TYPES), "image_url": {"url": source}},
        {"type": "image", "image_url": source},
        {"image": source},
        {"type": "image", "image": [source]},
        [{"type": "image", "image": source}],
        source,
    )
    return chance.choice(parts[:4] * 4 + parts)


def _write_body(path: str, message: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    messages = [message, answer()]
    if chance.random() < 0.1:
        messages = [answer(), message]
    if path == "/v1/score":
        return {"conversations": [messages] * chance.choice((1, 1, 3))}
    if path == "/v1/rank":
        return {"prompt": [message], "responses": ["a", "b", messages]}
    if path == "/v1/compare":
        return {"pairs": [{"prompt": [message], "chosen": "a", "rejected": messages}]}
    if path == "/score":
        return {"queries": {"content": message["content"]}, "documents": ["a", "b"]}
    options = {"truncation": chance.choice(("left", "right")), "offsets": True}
    return {"messages": messages} | (options if path == "/v1/render" else {})


def draw_body(seed: int, number: int) -> tuple[str, bytes, tuple[str, ...]]:
    """Return path and body of a request of this number, and how it was made."""
    chance = random.Random(f"{seed}/{number}")
    parts: list[Any] = []
    how: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 5, 40))):
        make = chance.choice(_FILES)
        source, way = _write_source(make(chance), chance)
        parts.append(_write_part(source, chance))
        how += [make.__name__.strip("_"), way]
    if chance.random() < 0.7:
        parts.insert(chance.randrange(len(parts) + 1), {"type": "text", "text": "What is it?"})
    role = chance.choice(("user",) * 8 + ("system", "assistant", "tool"))
    message = {"role": role, "content": copy.deepcopy(parts)}
    path = chance.choice(_PATHS)
    body = json.dumps(_write_body(path, message, chance)).encode()
    return path, body, (path, role, *how)
