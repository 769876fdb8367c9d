"""What a job was asked to do, apart from where it is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_core import Truncation
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.inputs.files import FileSource

CHUNK_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The options of a job.

    Attributes:
        source: its input.
        output: where the rows with their rewards go.
        truncation: what to do with what is too long.
        columns: where the parts of a record are.
        limit: how many rows to take; None for all.
        chunk_rows: most rows of a chunk.
        fail_fast: whether to end at the first row with an error.
        overwrite: whether to start afresh, whatever is there.
        replace_results: whether columns of the input that are named like results are of an earlier
            run, and replaced.
        asked: how the model was asked for, as JSON data. While that is the same, a job that is
            done looks at no model and asks no service.
    """

    source: FileSource
    output: Path
    truncation: Truncation = "error"
    columns: Columns = DEFAULT_COLUMNS
    limit: int | None = None
    chunk_rows: int = CHUNK_ROWS
    fail_fast: bool = False
    overwrite: bool = False
    replace_results: bool = False
    model_spec: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Those that decide the results or where chunks are cut, as JSON data: they are pinned."""
        return {
            "truncation": self.truncation,
            "limit": self.limit,
            "chunk_rows": self.chunk_rows,
            "replace_results": self.replace_results,
            **self.columns.as_options(),
        }
