"""Writes small PNG files, for the conversations with images that every load compares. No Pillow."""

from __future__ import annotations

import struct
import zlib


def write_png(width: int, height: int) -> bytes:
    """Return a PNG file with a coloured pattern, different for every size."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # the row is not filtered
        for x in range(width):
            rows += bytes((255 * x // width, 255 * y // height, (x * y + 7 * width) % 256))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
