"""`skyreward score` with chunks of a few rows: `python small_chunks.py ROWS score INPUT ...`.

A chunk has 2,000 rows, which takes too long for a test that stops a job between two chunks.
"""

from __future__ import annotations

import sys
from functools import partial

from serve.cli.main import main
from serve.jobs import command

if __name__ == "__main__":
    command.JobSpec = partial(command.JobSpec, chunk_rows=int(sys.argv.pop(1)))  # type: ignore[misc, assignment]
    main()
