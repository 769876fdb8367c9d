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


class GracefulShutdown:
    """Whether a job was asked to stop. A context manager, for the main thread.

    Args:
        note: told to a person after the first signal.

    Attributes:
        asked: the signal that asked; None while nobody did.
    """

    def __init__(self, notice: str) -> None:
        self.received_signal: int | None = None
        self._note = notice
        self._interrupts = False
        self._previous_handlers: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """As a shell tells of a program that a signal ended."""
        return 128 + (self.received_signal or 0)

    @contextlib.contextmanager
    def allow_interrupt(self, enabled: bool) -> Iterator[None]:
        """A block of the main thread that a signal ends at once, if that is wanted.

        Raises:
            JobStoppedError: a signal came, now or before.
        """
        if enabled and self.received_signal is not None:
            raise JobStoppedError("stopped as asked")
        self._interrupts = enabled
        try:
            yield
        finally:
            self._interrupts = False

    def __enter__(self) -> GracefulShutdown:
        self._previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in _SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received_signal is not None:
            # Threads may be deep in a batch: nothing waits for them. As after any kill, the next
            # start goes on behind the last chunk that is whole.
            os._exit(128 + number)
        self.received_signal = number
        # Not through Python's streams: the signal may have come in the middle of a write to one.
        os.write(2, self._note.encode())
        if self._interrupts:
            raise JobStoppedError("stopped as asked")
