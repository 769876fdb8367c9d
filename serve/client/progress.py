"""A progress bar for those who ask for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many more are done; on standard error."""
    if not enabled:
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("scored", total=total)
        yield lambda more: progress.update(task, advance=more)
        progress.update(task, completed=total)
