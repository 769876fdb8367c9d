"""A file whose writer may be given up: libraries finish a format even then, when they are freed."""

from __future__ import annotations

import io
from typing import IO, Any


class AbortableFile(io.RawIOBase):
    """Hands bytes on until it is dropped, and throws them away from then on.

    Args:
        file: where the bytes go; stays open. Written from its beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file
        self._num_bytes = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, block: Any) -> int:
        """All of it, also where the file is unbuffered."""
        left = memoryview(block).cast("B")
        size = len(left)
        while self._file and left:
            left = left[self._file.write(left) :]
        self._num_bytes += size
        return size

    def tell(self) -> int:
        """Bytes so far."""
        return self._num_bytes

    def abort(self) -> None:
        """Write nothing more."""
        self._file = None
