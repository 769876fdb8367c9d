"""The optional progress bar of the clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield a function that advances it by some items."""
    if not enabled:
        yield lambda num_new: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("scored", total=total)
        yield lambda num_new: progress.update(task, advance=num_new)
        progress.update(task, completed=total)
