"""Waiting for an event, for as long as a busy machine may need, and clocks that tests move.

No test here asserts how long something took, and none sleeps for a fixed time in the hope that
another thread gets its turn meanwhile: it waits for the event itself, up to `PATIENCE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_S = 120.0
"""Seconds until an event that never comes fails a test. Far more than any event here takes."""


def until(condition: Callable[[], object], what: str = "") -> None:
    """Return once a condition holds.

    Raises:
        AssertionError: it does not hold after `PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


async def until_async(condition: Callable[[], object], what: str = "") -> None:
    """Return once a condition holds, while the event loop goes on.

    Raises:
        AssertionError: it does not hold after `PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every task of the event loop run until it waits for something from outside the loop."""
    for _ in range(200):
        await asyncio.sleep(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it.

    For code that waits for nothing outside its loop: no thread, no socket, no process.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


class MovableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test can set forward, so that a deadline passes when it should.

    Between two moves the clock runs as usual.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Set the clock forward. Timers that are due then run in the next turn of the loop.

        May be called from any thread.
        """

        def move() -> None:
            self._ahead_s += seconds

        self.call_soon_threadsafe(move)


def advance(seconds: float) -> None:
    """Set the clock of the running event loop, a `MovableLoop`, forward."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MovableLoop)
    loop.advance(seconds)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections, and that no other process can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening
        yield int(bound.getsockname()[1])
