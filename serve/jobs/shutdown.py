"""Ctrl-C and SIGTERM: the first signal stops a job after the chunks in flight, the second at once.

While the job only waits for a service, which may never respond, the first signal interrupts it.
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
    """Records whether a signal asked the job to stop. A context manager for the main thread.

    Args:
        notice: text printed to standard error after the first signal.

    Attributes:
        received_signal: number of the first signal; None if there was none.
    """

    def __init__(self, notice: str) -> None:
        self.received_signal: int | None = None
        self._notice = notice
        self._interrupts = False
        self._previous_handlers: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """Exit code as a shell reports it for a program ended by the signal."""
        return 128 + (self.received_signal or 0)

    @contextlib.contextmanager
    def allow_interrupt(self, enabled: bool) -> Iterator[None]:
        """Let a signal interrupt the block, if `enabled`.

        Raises:
            JobStoppedError: a signal arrived, before or during the block.
        """
        if enabled and self.received_signal is not None:
            raise JobStoppedError("stopped by a signal")
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
            # Do not wait for threads that run a batch. As after a kill, the next start resumes
            # after the last finished chunk.
            os._exit(128 + number)
        self.received_signal = number
        # Bypass Python's streams: the signal may have interrupted a write to one.
        os.write(2, self._notice.encode())
        if self._interrupts:
            raise JobStoppedError("stopped by a signal")
