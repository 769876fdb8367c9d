"""Files with the results of a chunk, as compressed JSON lines, without the rows themselves.

The first line is a header with the digest of the other lines, so that a truncated or changed file
and a file of another job are recognized.
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
from serve.jobs.record_schema import RecordKind
from serve.jobs.row_results import collect_warnings, find_first_error
from serve.jobs.summary import Summary

Result: TypeAlias = Reward | ScoreError

_LEVEL = 1  # the content is mostly digits: higher levels take longer and save little


class RowResults(NamedTuple):
    """Results of one row.

    Attributes:
        kind: kind of the record; None if unknown.
        results: results of the record's conversations, in order.
        error: why the row has no conversations; None if it has some, even if they failed.
        warnings: warnings about how the record was read, without the warnings of rewards.
    """

    kind: RecordKind | None
    results: list[Result]
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def all_warnings(self) -> list[str]:
        """Content of the row's `warnings` column: warnings of the record, then of its rewards."""
        return collect_warnings(self.warnings, self.results)

    @property
    def failure(self) -> ScoreError | None:
        """Content of the row's `error` column: error of the row or of its first failed result."""
        if self.error:
            return self.error
        return find_first_error(self.kind, self.results)


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of a chunk.

    Attributes:
        chunk: index of the chunk, from 0.
        first_row: number of the first row.
        num_rows: number of rows, at least 1.
    """

    chunk: int
    first_row: int
    num_rows: int

    @property
    def end(self) -> int:
        """Number of the row after the last one."""
        return self.first_row + self.num_rows


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """A finished chunk.

    Attributes:
        span: the rows of the chunk.
        rows: results of the rows, `[num_rows]`, in order.
        summary: summary of this chunk alone.
    """

    span: Span
    rows: Sequence[RowResults]
    summary: Summary


class CorruptStateError(Exception):
    """A file of the job is damaged; the message describes the damage."""


def chunk_path(folder: Path, chunk: int) -> Path:
    """Return the path of a chunk's file."""
    return folder / f"{chunk:06d}.json.gz"


def write_chunk(folder: Path, job_id: str, result: ChunkResult) -> None:
    """Write the file of a chunk durably.

    Args:
        folder: folder of all chunks.
        job_id: `Manifest.job_id`.
        result: the finished chunk.
    """
    body = _encode_rows(result.rows)
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
    """Read the file of a chunk.

    Raises:
        CorruptStateError: the file is damaged, or belongs to another job.
        FileNotFoundError: the file does not exist.
    """
    try:
        first_line, _, body = gzip.decompress(chunk_path(folder, chunk).read_bytes()).partition(
            b"\n"
        )
        header = json.loads(first_line)
        if header.pop("job") != job_id:
            raise CorruptStateError("it belongs to another job")
        if header.pop("sha256") != hashlib.sha256(body).hexdigest():
            raise CorruptStateError("its digest is wrong")
        summary = Summary.from_json(header.pop("figures"))
        span = Span(**header)
        rows = [_decode_row(row) for row in json.loads(body)]
    except (FileNotFoundError, CorruptStateError):
        raise
    # A damaged file may have any content, so reading it may raise any exception.
    except Exception as error:
        raise CorruptStateError(f"it cannot be read ({type(error).__name__}: {error})") from error
    if span.num_rows != len(rows) or span.chunk != chunk:
        raise CorruptStateError("its rows do not match its header")
    return ChunkResult(span, rows, summary)


def encode_result(result: Result) -> str:
    """Encode a result as JSON. Rewards are exact to the last bit, as the `repr` of a float is."""
    if isinstance(result, ScoreError):
        return json.dumps({"code": result.code, "message": result.message})
    if result.truncated or result.warnings:
        return json.dumps(
            [result.reward, result.num_tokens, result.truncated, list(result.warnings)]
        )
    return f"[{result.reward!r},{result.num_tokens}]"


def decode_result(value: Any) -> Result:
    """Decode the JSON value of `encode_result`."""
    if isinstance(value, dict):
        return ScoreError(**value)
    if len(value) == 2:
        return Reward(value[0], value[1])
    reward, num_tokens, truncated, warnings = value
    return Reward(reward, num_tokens, truncated, tuple(warnings))


def _encode_rows(rows: Sequence[RowResults]) -> bytes:
    """Encode rows as a JSON list, one row per line."""
    return "[\n{}\n]\n".format(",\n".join(map(_encode_row, rows))).encode()


def _encode_row(row: RowResults) -> str:
    kind = f'"{row.kind}"' if row.kind else "null"
    if row.error:
        return f"[{kind},{encode_result(row.error)},true]"
    results = ",".join(map(encode_result, row.results))
    warnings = f",{json.dumps(row.warnings)}" if row.warnings else ""
    return f"[{kind},[{results}]{warnings}]"


def _decode_row(value: list[Any]) -> RowResults:
    kind, results, *more = value
    if more == [True]:
        return RowResults(kind, [], ScoreError(**results))
    warnings = tuple(more[0]) if more else ()
    return RowResults(kind, [decode_result(result) for result in results], warnings=warnings)
