"""`skyreward score` with chunks of a few rows: `python small_chunks.py ROWS score INPUT ...`.

A chunk has 2,000 rows, which takes too long for a test that stops a job between two chunks.
"""

from __future__ import annotations

import sys
from functools import partial

from serve.cli.main import main
from serve.jobs import command


def set_chunk_rows(chunk_rows: int) -> None:
    command.JobSpec = partial(command.JobSpec, chunk_rows=chunk_rows)  # type: ignore[misc, assignment]


if __name__ == "__main__":
    set_chunk_rows(int(sys.argv.pop(1)))
    main()
