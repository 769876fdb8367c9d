"""Ctrl-C and SIGTERM: the first asks a job to stop after what is in flight, the second ends it.

Where nothing is in flight but a question to a service, which may never answer, the first interrupts
it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from serve.errors import JobStoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether a job was asked to stop. A context manager, for the main thread.

    Args:
        note: told to a person after the first signal.

    Attributes:
        asked: the signal that asked; None while nobody did.
    """

    def __init__(self, note: str) -> None:
        self.asked: int | None = None
        self._note = note
        self._interrupts = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """As a shell tells of a program that a signal ended."""
        return 128 + (self.asked or 0)

    @contextlib.contextmanager
    def interrupting(self, wanted: bool) -> Iterator[None]:
        """A block of the main thread that a signal ends at once, if that is wanted.

        Raises:
            JobStoppedError: a signal came, now or before.
        """
        if wanted and self.asked is not None:
            raise JobStoppedError("stopped as asked")
        self._interrupts = wanted
        try:
            yield
        finally:
            self._interrupts = False

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            # Threads may be deep in a batch: nothing waits for them. As after any kill, the next
            # start goes on behind the last chunk that is whole.
            os._exit(128 + number)
        self.asked = number
        # Not through Python's streams: the signal may have come in the middle of a write to one.
        os.write(2, self._note.encode())
        if self._interrupts:
            raise JobStoppedError("stopped as asked")
