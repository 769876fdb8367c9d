"""The bytes of a file as they are stored: watched while they are read, hashed, unpacked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from serve.errors import JobInputError
from serve.jobs.inputs.encodings import HEAD_BYTES, require_utf8

Watcher: TypeAlias = Callable[[memoryview], None]
"""Is told bytes of a file, in order."""

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def open_decompressed(path: Path, offset: int, watch: Watcher | None = None) -> Iterator[IO[bytes]]:
    """The text that a file holds, whether compressed or not, from a place in it on.

    Compressed files are unpacked again from their beginning to reach the place.

    Args:
        path: of the file.
        offset: in what it holds, in bytes.
        watch: is told the bytes as they are stored, from the first one on; needs offset 0.

    Raises:
        JobInputError: it is damaged, also while it is read, or ends before the place, or is
            text in UTF-16 or another encoding that shows in its first bytes.
    """
    assert watch is None or not offset
    if not offset:
        with _open_unchecked(path, 0, None) as file:
            require_utf8(file.read(HEAD_BYTES), path)
    with _open_unchecked(path, offset, watch) as file:
        yield file


@contextlib.contextmanager
def _open_unchecked(path: Path, offset: int, watch: Watcher | None) -> Iterator[IO[bytes]]:
    if not path.is_file():
        raise JobInputError(f"{path} is no regular file; save what it gives to one")
    with _WatchedFile(path, watch) as raw, io.BufferedReader(raw, _BLOCK_BYTES) as stored:
        file: IO[bytes] = stored
        try:
            if stored.peek(2)[:2] == _GZIP:
                file = cast(IO[bytes], gzip.GzipFile(fileobj=stored))
            if offset and (file.seek(offset - 1) != offset - 1 or not file.read(1)):
                raise truncated_file_error(path)
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise JobInputError(
                f"{path} is compressed and damaged ({error}); bring a whole copy of it"
            ) from error


def read_through(path: Path, watch: Watcher, num_bytes: int | None = None) -> None:
    """Read a file, or its first bytes, for the watcher alone."""
    left = path.stat().st_size if num_bytes is None else num_bytes
    with path.open("rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            watch(memoryview(block))
            left -= len(block)


def compute_prefix_sha256(path: Path, num_bytes: int) -> str:
    """SHA-256 of the first bytes of a file, hexadecimal; of all of it where it is shorter."""
    digest = hashlib.sha256()
    read_through(path, digest.update, num_bytes)
    return digest.hexdigest()


def truncated_file_error(path: Path) -> JobInputError:
    """The error for a file that ends before the position to go on at."""
    return JobInputError(
        f"{path} is shorter than when the job began; bring it back as it was, or start afresh"
    )


class _WatchedFile(io.FileIO):
    """A file whose reader is watched; read without seeking."""

    def __init__(self, path: Path, watch: Watcher | None) -> None:
        super().__init__(path)
        self._watch = watch

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        if self._watch and count:
            self._watch(memoryview(buffer)[:count])
        return count
