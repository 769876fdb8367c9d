"""Ctrl-C and SIGTERM: the first signal asks to finish what is in flight, the second ends at once.

Jobs and the service handle signals in the same way. A job that only waits for a service, which may
never respond, is interrupted by the first signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from serve.errors import JobStoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_INTERVAL_S = 0.3


class GracefulShutdown:
    """Records whether a signal asked to stop. A context manager for the main thread.

    Args:
        notice: text printed to standard error after the first signal.
        end: called with the exit code at the second signal. By default the process ends without
            waiting for threads that run a batch; as after a kill, a job resumes after the last
            finished chunk.

    Attributes:
        received_signal: number of the last signal; None if there was none.
    """

    def __init__(self, notice: str = "", end: Callable[[int], object] = os._exit) -> None:
        self.received_signal: int | None = None
        self._notice = notice
        self._end = end
        self._interrupts = False
        self._previous_handlers: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """Exit code as a shell reports it for a program ended by the signal."""
        return 128 + (self.received_signal or 0)

    def wait(self) -> None:
        """Return once a signal has asked to stop."""
        while self.received_signal is None:
            time.sleep(_POLL_INTERVAL_S)

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

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        is_second = self.received_signal is not None
        self.received_signal = number
        if is_second:
            self._end(self.exit_code)
        # Bypass Python's streams: the signal may have interrupted a write to one.
        os.write(2, self._notice.encode())
        if self._interrupts:
            raise JobStoppedError("stopped by a signal")
