"""The results of a chunk as JSON lines in a file, and back: nothing of the rows themselves.

The first line is the chunk's header, with the digest of all others. Whatever was cut off, changed
or belongs to another job is told apart from a whole file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rm_core import Reward, ScoreError
from serve.jobs.atomic_io import write_atomically
from serve.jobs.inputs.source import Position
from serve.jobs.record_schema import RecordKind
from serve.jobs.row_results import collect_warnings, find_first_error
from serve.jobs.summary import Summary

Result: TypeAlias = Reward | ScoreError

_LEVEL = 1  # mostly digits: higher levels take longer and save little


class RowResults(NamedTuple):
    """What became of one row.

    Attributes:
        shape: of its record; None if it is not known.
        results: of its conversations, in order.
        error: why it has no conversations; else None, whatever became of them.
        warnings: about how its record was read; those of rewards are with them.
    """

    kind: RecordKind | None
    results: list[Result]
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def all_warnings(self) -> list[str]:
        """What the row's `warnings` column says: of the record, then of its rewards."""
        return collect_warnings(self.warnings, self.results)

    @property
    def failure(self) -> ScoreError | None:
        """What the row's `error` column says: of the row, or of the first that failed in it."""
        if self.error:
            return self.error
        return find_first_error(self.kind, self.results)


@dataclass(frozen=True, slots=True)
class Span:
    """Which rows a chunk holds.

    Attributes:
        chunk: number of the chunk, from 0.
        first_row: number of its first row.
        num_rows: at least 1.
        end: the reader's position behind the last row.
    """

    chunk: int
    first_row: int
    num_rows: int
    end: Position


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """A chunk that is done.

    Attributes:
        span: its rows.
        rows: `[num_rows]`, in order.
        figures: of this chunk alone.
    """

    span: Span
    rows: Sequence[RowResults]
    summary: Summary


class CorruptStateError(Exception):
    """A file of the job that is not as it was written; its text says how."""


def chunk_path(folder: Path, chunk: int) -> Path:
    """Where the results of a chunk are kept."""
    return folder / f"{chunk:06d}.json.gz"


def write_chunk(folder: Path, job_id: str, result: ChunkResult) -> None:
    """Keep a chunk, durably.

    Args:
        folder: of all chunks.
        job: digest of what the job is pinned to.
        finished: the chunk.
    """
    body = _body(result.rows)
    header = {
        "job": job_id,
        **asdict(result.span),
        "figures": result.summary.as_json(),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    content = json.dumps(header).encode() + b"\n" + body
    path = chunk_path(folder, result.span.chunk)
    write_atomically(path, gzip.compress(content, _LEVEL, mtime=0))


def read_chunk(folder: Path, job_id: str, chunk: int) -> ChunkResult:
    """What `write_chunk` kept.

    Raises:
        DamagedError: the file is not whole, or of another job.
        FileNotFoundError: there is none.
    """
    try:
        first, _, body = gzip.decompress(chunk_path(folder, chunk).read_bytes()).partition(b"\n")
        header = json.loads(first)
        if header.pop("job") != job_id:
            raise CorruptStateError("it belongs to another job")
        if header.pop("sha256") != hashlib.sha256(body).hexdigest():
            raise CorruptStateError("its digest is wrong")
        figures = Summary.from_json(header.pop("figures"))
        span = Span(**{**header, "end": Position(*header["end"])})
        rows = [_read_row(row) for row in json.loads(body)]
    except (FileNotFoundError, CorruptStateError):
        raise
    # Anything may stand in a damaged file, and so fail in any way.
    except Exception as error:
        raise CorruptStateError(f"it cannot be read ({type(error).__name__}: {error})") from error
    if span.num_rows != len(rows) or span.chunk != chunk:
        raise CorruptStateError("it does not hold what its header says")
    return ChunkResult(span, rows, figures)


def encode_result(result: Result) -> str:
    """A result as JSON. Rewards come back to the last bit: `repr` of a float does."""
    if isinstance(result, ScoreError):
        return json.dumps({"code": result.code, "message": result.message})
    if result.truncated or result.warnings:
        return json.dumps(
            [result.reward, result.num_tokens, result.truncated, list(result.warnings)]
        )
    return f"[{result.reward!r},{result.num_tokens}]"


def decode_result(value: Any) -> Result:
    """What `encode_result` wrote, as `json` reads it."""
    if isinstance(value, dict):
        return ScoreError(**value)
    if len(value) == 2:
        return Reward(value[0], value[1])
    reward, num_tokens, truncated, warnings = value
    return Reward(reward, num_tokens, truncated, tuple(warnings))


def _body(rows: Sequence[RowResults]) -> bytes:
    """A JSON list, one row a line."""
    return "[\n{}\n]\n".format(",\n".join(map(_row_text, rows))).encode()


def _row_text(row: RowResults) -> str:
    shape = f'"{row.kind}"' if row.kind else "null"
    if row.error:
        return f"[{shape},{encode_result(row.error)},true]"
    results = ",".join(map(encode_result, row.results))
    warnings = f",{json.dumps(row.warnings)}" if row.warnings else ""
    return f"[{shape},[{results}]{warnings}]"


def _read_row(value: list[Any]) -> RowResults:
    shape, results, *more = value
    if more == [True]:
        return RowResults(shape, [], ScoreError(**results))
    warnings = tuple(more[0]) if more else ()
    return RowResults(shape, [decode_result(result) for result in results], warnings=warnings)
