"""Text of files: decompressed, and refused by name of its encoding if it is not UTF-8.

UTF-16 and UTF-32 are recognized by the first bytes. Encodings such as Windows-1252 or Shift-JIS are
recognized only by lines that are not ASCII, so these lines are counted; a few damaged lines of a
UTF-8 file are errors of their rows.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from typing import IO, cast

from serve.errors import JobInputError
from serve.jobs.storage import Location

HEAD_BYTES = 4096
"""Number of bytes at the start of a file that suffice for `require_utf8`."""
_GZIP = b"\x1f\x8b"
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x84\x31\x95\x33", "GB18030"),
    (b"+/v", "UTF-7"),
)
_COMPRESSION_MAGIC = (
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
# Other encodings in use, the most common first.
_CANDIDATE_ENCODINGS = (
    *("cp1252", "shift_jis", "gb18030", "cp1251", "euc_kr", "big5", "euc_jp", "cp1250", "koi8_r"),
    *("cp1254", "cp1253", "cp1256", "cp1255", "cp1257", "cp1258", "cp874"),
    *("iso2022_jp", "iso2022_kr", "cp949", "cp932"),
)
_SAMPLE_BYTES = 1 << 16
_MOSTLY, _SOME = 0.9, 0.1  # share of characters with a NUL at a byte position
_FEWEST_PER_ROWS = 100  # fewer bad lines than one in 100 are damage, not an encoding


@contextlib.contextmanager
def open_decompressed(location: Location) -> Iterator[IO[bytes]]:
    """Open the text of a file, compressed or not.

    Raises:
        JobInputError: the file is damaged (also raised while it is read), or has an encoding such
            as UTF-16 that is recognized by its first bytes.
    """
    with location.open() as stored:
        file = stored
        try:
            is_compressed = stored.read(2) == _GZIP
            stored.seek(0)
            if is_compressed:
                file = cast(IO[bytes], gzip.GzipFile(fileobj=stored))
            require_utf8(file.read(HEAD_BYTES), str(location))
            file.seek(0)
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise JobInputError(
                f"{location} is compressed and damaged ({error}); copy the complete file again"
            ) from error


def require_utf8(head: bytes, path: str) -> None:
    """Refuse a file whose first bytes show that it is not UTF-8 text.

    Args:
        head: the first bytes, decompressed; at least 4, and `HEAD_BYTES` suffice.
        path: path for the error message.

    Raises:
        JobInputError: the file is compressed or has another encoding, which the message names.
    """
    for magic, name in _COMPRESSION_MAGIC:
        if head.startswith(magic):
            raise JobInputError(
                f"{path} is compressed with {name}; decompress it, or compress it with gzip"
            )
    if encoding := _detect_wide_encoding(head):
        raise JobInputError(
            f"{path} is {encoding} text, and only UTF-8 is read; save the file as UTF-8, for "
            f"example with `iconv -f {encoding} -t UTF-8`"
        )


class EncodingCounter:
    """Counts the lines of a file that are UTF-8 and those that are not."""

    def __init__(self) -> None:
        self._num_good = self._num_bad = 0
        self._sample = bytearray()

    def add(self, line: bytes) -> None:
        """Count one line."""
        if b"\x1b" not in line:  # ISO 2022 looks like ASCII with escape characters
            if line.isascii():
                return
            with contextlib.suppress(UnicodeDecodeError):
                line.decode("utf-8", "surrogatepass")
                self._num_good += 1
                return
        self._num_bad += 1
        self._sample += line[: _SAMPLE_BYTES - len(self._sample)]

    def require_utf8(self, path: str, num_rows: int) -> None:
        """Refuse a file in another encoding; call this after all lines are counted.

        Args:
            path: path for the error message.
            num_rows: number of rows of the file.

        Raises:
            JobInputError: the file is not UTF-8; the message names the probable encoding.
        """
        bad = self._num_bad
        is_common = bad == num_rows or (bad > 1 and bad * _FEWEST_PER_ROWS >= num_rows)
        if bad > self._num_good and is_common:
            encoding = guess_encoding(bytes(self._sample))
            raise JobInputError(
                f"{path} is not UTF-8: {bad} of its {num_rows} rows are in another encoding"
                + (
                    f", perhaps {encoding}; save the file as UTF-8, for example with `iconv -f "
                    f"{encoding} -t UTF-8`, and check the letters that are not ASCII"
                    if encoding
                    else "; save the file as UTF-8"
                )
            )


def guess_encoding(text: bytes) -> str | None:
    """Guess the encoding of a text that is not UTF-8; return None if no encoding fits.

    A guess from few letters may name a related encoding, such as cp1250 for cp1252.
    """
    # Imported here because the import is slow and only needed for errors.
    from charset_normalizer import from_bytes

    best = from_bytes(text, cp_isolation=list(_CANDIDATE_ENCODINGS)).best()
    if best is None:
        return None
    # Of several encodings that give the same text, choose the most common one.
    equivalent = {best.encoding, *best.could_be_from_charset}
    found = next((name for name in _CANDIDATE_ENCODINGS if name in equivalent), best.encoding)
    return found.replace("_", "-")


def _detect_wide_encoding(head: bytes) -> str | None:
    by_mark = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if by_mark or b"\x00" not in head:
        return by_mark
    # ASCII characters (all of JSON except its strings) in UTF-16 and UTF-32 have NUL bytes at
    # positions that identify the encoding.
    num_units = max(1, len(head) // 4)
    shares = [head[offset::4].count(0) / num_units for offset in range(4)]
    match [share > _MOSTLY for share in shares]:
        case [True, True, _, False]:
            return "UTF-32BE"
        case [False, _, True, True]:
            return "UTF-32LE"
    evens, odds = shares[0] + shares[2], shares[1] + shares[3]
    if odds > _SOME and odds > 8 * evens:
        return "UTF-16LE"
    if evens > _SOME and evens > 8 * odds:
        return "UTF-16BE"
    return None
