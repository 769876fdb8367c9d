"""Bounds the memory of decoded images: a few bytes of a file may become megabytes of pixels.

A request reserves the memory of a slice's images before they are decoded, and waits while its
client has used its share. It gives the memory back once the slice is scored, so that those who wait
go on as the queue drains. Not thread-safe: for one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator


class ImageMemory:
    """Decoded images that the requests of one model hold, in bytes."""

    def __init__(self) -> None:
        self._by_client: Counter[str] = Counter()
        self._has_changed = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        """Bytes that all requests hold or have reserved."""
        return self._by_client.total()

    @contextlib.contextmanager
    def open_hold(self, client: str, limit: int) -> Iterator[ImageHold]:
        """Open the account of a request, and give back what is left at the end of the `with`.

        `limit` is for all requests together. Clients that hold images share it equally, and one
        that holds none may always reserve once.
        """
        hold = ImageHold(self, client, limit)
        try:
            yield hold
        finally:
            hold.add(-hold.num_bytes)

    def _has_room(self, client: str, limit: int) -> bool:
        num_held = self._by_client[client]
        share = limit // max(1, len(self._by_client))
        return not num_held or (num_held < share and self.num_bytes < limit)

    def _add(self, client: str, num_bytes: int) -> None:
        self._by_client[client] += num_bytes
        if not self._by_client[client]:
            del self._by_client[client]
        if num_bytes < 0:
            self._has_changed.set()
            self._has_changed = asyncio.Event()


class ImageHold:
    """Decoded images that one request holds."""

    def __init__(self, memory: ImageMemory, client: str, limit: int) -> None:
        self.num_bytes = 0
        self._memory = memory
        self._client = client
        self._limit = limit

    async def reserve(self, num_bytes: int) -> None:
        """Wait for room, and take so many bytes."""
        if num_bytes:
            while not self._memory._has_room(self._client, self._limit):
                await self._memory._has_changed.wait()
            self.add(num_bytes)

    def add(self, num_bytes: int) -> None:
        """Take more bytes without waiting, or give some back."""
        if num_bytes:
            self.num_bytes += num_bytes
            self._memory._add(self._client, num_bytes)
