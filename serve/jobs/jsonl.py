"""A JSONL file through a scorer, chunk by chunk: memory stays bounded whatever its size."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rm_core import (
    Encoded,
    ModelConfig,
    Reward,
    ScoreError,
    Truncation,
    load_encoder,
    render_record,
)
from rm_core.conversations import Messages
from serve.jobs.records import Work, read_work
from serve.jobs.results import merged, outcome_of

ScoreAll: TypeAlias = Callable[[list[Messages], Truncation], list[Reward | ScoreError]]
"""Scores conversations; result i belongs to conversation i."""

_CHUNK_RECORDS = 128


@dataclass(slots=True)
class Summary:
    """What a job did."""

    records: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Records with an error."""
        return sum(self.errors.values())

    def __str__(self) -> str:
        by_code = ", ".join(f"{count} {code}" for code, count in self.errors.most_common())
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.records} records, {self.failed} with an error"
            + (f" ({by_code})" if by_code else "")
            + f", {self.tokens} tokens in {self.seconds:.1f} s ({rate:.0f} tokens/s)"
        )


def score_file(source: Path, output: Path, score_all: ScoreAll, truncation: Truncation) -> Summary:
    """Score every record of a file, in order; OUTPUT appears only once it is whole.

    Args:
        source: JSONL; empty lines are skipped.
        output: where the records with their rewards go.
        score_all: see `ScoreAll`.
        truncation: what to do with what is too long.
    """
    summary = Summary()
    started = time.perf_counter()
    partial = output.with_name(output.name + ".partial")
    with source.open("rb") as lines, partial.open("wb") as out, _bar() as bar:
        task = bar.add_task("scoring", total=source.stat().st_size, rows=0)
        for chunk in _chunks(lines):
            for record in _score_chunk(chunk, score_all, truncation, summary):
                out.write(_line(record))
            size = sum(len(line) for line in chunk)
            bar.update(task, advance=size, rows=summary.records)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, output)
    summary.seconds = time.perf_counter() - started
    return summary


def render_lines(
    lines: IO[bytes], config: ModelConfig, truncation: Truncation, write: Callable[[str], None]
) -> int:
    """Write what would be scored of each record's conversations; returns the number of errors.

    Args:
        lines: JSONL of the same shapes as a job's.
        config: the checkpoint whose tokenizer and template to use.
        truncation: what to do with what is too long.
        write: told one JSON line a conversation.
    """
    encoder = load_encoder(config)
    failed = 0
    numbered = enumerate(line for line in lines if line.strip())
    for index, line in numbered:
        _, work = _parse(line)
        for conversation in [work.error] if work.error else work.conversations:
            encoded: Encoded | ScoreError
            if isinstance(conversation, ScoreError):
                encoded = conversation
            else:
                (encoded,) = encoder.encode_all([conversation], truncation)
            record: dict[str, Any] = {"line": index}
            if isinstance(encoded, Encoded):
                record |= render_record(encoded)
            else:
                failed += 1
                record["error"] = {"code": encoded.code, "message": encoded.message}
            write(json.dumps(record, ensure_ascii=False))
    return failed


def _score_chunk(
    chunk: list[bytes], score_all: ScoreAll, truncation: Truncation, summary: Summary
) -> Iterator[Any]:
    parsed = [_parse(line) for line in chunk]
    valid = [
        conversation
        for _, work in parsed
        for conversation in work.conversations
        if not isinstance(conversation, ScoreError)
    ]
    results = iter(score_all(valid, truncation))
    for record, work in parsed:
        mine = [c if isinstance(c, ScoreError) else next(results) for c in work.conversations]
        finished = merged(record, outcome_of(work, mine))
        summary.records += 1
        summary.tokens += sum(r.num_tokens for r in mine if isinstance(r, Reward))
        if error := finished.get("error"):
            summary.errors[error["code"]] += 1
        yield finished


def _parse(line: bytes) -> tuple[Any, Work]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        text = line.decode("utf-8", "replace").rstrip("\n")
        problem = ScoreError("invalid_json", f"the line is no JSON: {error}; one record a line")
        return text, Work(None, error=problem)
    return record, read_work(record)


def _line(record: Any) -> bytes:
    # Columns go out as they came in, also what strict JSON lacks: NaN, or half a surrogate pair.
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _chunks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    rows = (line for line in lines if line.strip())
    while chunk := list(itertools.islice(rows, _CHUNK_RECORDS)):
        yield chunk


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rows]} records"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
