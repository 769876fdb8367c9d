"""Watches the memory of a service's processes while something else goes on."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from service import Service, memory_of

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment, bytes by process id."""

    at: float
    pss: dict[int, int]
    private: dict[int, int]

    @property
    def total(self) -> int:
        """Of all processes together; pages that they share count once."""
        return sum(self.pss.values())


class MemoryWatch:
    """Takes a sample of every process, again and again, until it is left.

    Args:
        service: whose.
        every_s: seconds between samples.
    """

    def __init__(self, service: Service, every_s: float = 1.0) -> None:
        self.samples: list[Sample] = []
        self.names: dict[int, str] = {}
        self._service = service
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def between(self, start: float, end: float) -> list[Sample]:
        """Samples of a stretch of time, by `time.perf_counter`."""
        return [sample for sample in self.samples if start <= sample.at <= end]

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            found = {}
            for process in self._service.processes():
                if memory := memory_of(process.pid):
                    found[process.pid] = memory
                    self.names[process.pid] = process.name
            self.samples.append(
                Sample(
                    time.perf_counter(),
                    {pid: memory.pss for pid, memory in found.items()},
                    {pid: memory.private for pid, memory in found.items()},
                )
            )


def median_total(samples: list[Sample]) -> float:
    """Of all processes together, over a stretch of time."""
    return statistics.median(sample.total for sample in samples) if samples else 0.0


def median_private(samples: list[Sample]) -> dict[int, float]:
    """Of each process that was there all the time."""
    if not samples:
        return {}
    there = set.intersection(*(set(sample.private) for sample in samples))
    return {pid: statistics.median(sample.private[pid] for sample in samples) for pid in there}
