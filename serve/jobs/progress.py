"""Progress of a job: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from serve.console import Console
from serve.jobs.summary import Summary, format_duration


class Progress:
    """Shows the progress of a job, phase by phase. A context manager.

    Without a terminal (`on_terminal`, detected if None), `notify` gets a line every few seconds.
    """

    def __init__(
        self,
        notify: Callable[[str], None],
        *,
        on_terminal: bool | None = None,
        line_every_s: float = 10.0,
    ) -> None:
        self._is_shown = sys.stderr.isatty() if on_terminal is None else on_terminal
        self._notify = notify
        self._line_every_s = line_every_s
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=600,  # progress jumps by whole chunks
            disable=not self._is_shown,
        )
        self.start_phase("", total=0)

    def start_phase(self, name: str, *, total: int, completed: int = 0, unit: str = "rows") -> None:
        """Start a phase of `total` units, of which an earlier run completed some."""
        self._name, self._total, self._unit = name, total, unit
        self._completed = self._completed_before = completed
        self._tokens = 0
        self._started = self._line_at = time.monotonic()
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        if name:
            self._bar.add_task(name, total=total, completed=completed, status=self._format_status())

    def add(self, summary: Summary) -> None:
        """Add the rows and tokens of a finished chunk."""
        self._tokens += summary.num_tokens
        self.advance(summary.num_rows)

    def advance(self, count: int) -> None:
        """Increase the completed units by `count`."""
        self.update(self._completed + count)

    def update(self, completed: int) -> None:
        """Set the completed units."""
        self._completed = completed
        for task in self._bar.task_ids:
            self._bar.update(task, completed=completed, status=self._format_status())
        self.tick()

    def tick(self) -> None:
        """Print a line if one is due; call this often."""
        now = time.monotonic()
        if self._is_shown or now - self._line_at < self._line_every_s:
            return
        self._line_at = now
        share = 100 * self._completed / self._total if self._total else 100.0
        line = f"{self._name}: {share:.0f}%, {self._format_status()}"
        if (completed := self._completed - self._completed_before) > 0:
            seconds = (now - self._started) * (self._total - self._completed) / completed
            line += f", {format_duration(max(0.0, seconds))} left"
        self._notify(line)

    def _format_status(self) -> str:
        seconds = time.monotonic() - self._started
        rate = f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens and seconds else ""
        return f"{self._completed:,} {self._unit}{rate}"

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
