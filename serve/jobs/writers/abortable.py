"""A file object that can be aborted: libraries finish their format even when they are freed."""

from __future__ import annotations

import io
from typing import IO, Any


class AbortableFile(io.RawIOBase):
    """Forwards bytes to a file until `abort`, and discards them afterwards.

    Args:
        file: the underlying file, written from its beginning; it stays open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file
        self._num_bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, block: Any) -> int:
        """Write the whole block, also if the file is unbuffered."""
        left = memoryview(block).cast("B")
        size = len(left)
        while self._file and left:
            left = left[self._file.write(left) :]
        self._num_bytes += size
        return size

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._num_bytes

    def abort(self) -> None:
        """Discard all further writes."""
        self._file = None
