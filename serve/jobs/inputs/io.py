"""Read the stored bytes of files: decompress them, and pass them to a watcher, such as a hash."""

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
"""Receives the bytes of a file in order."""

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def open_decompressed(path: Path, offset: int, watch: Watcher | None = None) -> Iterator[IO[bytes]]:
    """Open the text of a file, compressed or not, at an offset.

    Compressed files are decompressed from their beginning to reach the offset.

    Args:
        path: the file.
        offset: offset in the decompressed content, in bytes.
        watch: receives the stored bytes from the first one on; needs offset 0.

    Raises:
        JobInputError: the file is damaged (also raised while it is read), ends before the offset,
            or has an encoding such as UTF-16 that is recognized by its first bytes.
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
        raise JobInputError(f"{path} is not a regular file; save its content to a file")
    with _WatchedFile(path, watch) as raw, io.BufferedReader(raw, _BLOCK_BYTES) as stored:
        file: IO[bytes] = stored
        try:
            if stored.peek(2)[:2] == _GZIP:
                file = cast(IO[bytes], gzip.GzipFile(fileobj=stored))
            if offset and (file.seek(offset - 1) != offset - 1 or not file.read(1)):
                raise build_truncated_file_error(path)
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise JobInputError(
                f"{path} is compressed and damaged ({error}); copy the complete file again"
            ) from error


def read_through(path: Path, watch: Watcher, num_bytes: int | None = None) -> None:
    """Pass a file, or its first `num_bytes`, to a watcher."""
    left = path.stat().st_size if num_bytes is None else num_bytes
    with path.open("rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            watch(memoryview(block))
            left -= len(block)


def compute_prefix_sha256(path: Path, num_bytes: int) -> str:
    """Return the hexadecimal SHA-256 of the first bytes of a file, or of all if it is shorter."""
    digest = hashlib.sha256()
    read_through(path, digest.update, num_bytes)
    return digest.hexdigest()


def build_truncated_file_error(path: Path) -> JobInputError:
    """Return the error for a file that ends before the position to resume at."""
    return JobInputError(
        f"{path} is shorter than when the job began; restore the file, or start over with "
        "--overwrite"
    )


class _WatchedFile(io.FileIO):
    """A file whose bytes go to a watcher; read it without seeking."""

    def __init__(self, path: Path, watch: Watcher | None) -> None:
        super().__init__(path)
        self._watch = watch

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        if self._watch and count:
            self._watch(memoryview(buffer)[:count])
        return count
