"""Inputs at addresses of other file systems: `memory://` stands in for stores of objects."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import JobInputError
from serve.jobs.inputs.scan import is_unchanged, scan_input
from serve.jobs.inputs.source import open_source
from serve.jobs.storage import InputFile, parse_location


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def measure(name: str) -> InputFile:
    return InputFile.from_location(parse_location(name))


def test_folder_of_another_file_system_is_read(memory: fsspec.AbstractFileSystem) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"n": [4, 5]}), table)
    memory.pipe(
        {
            "/in/a.jsonl": b'{"n": 1}\n{"n": 2}\n',
            "/in/deep/b.jsonl.gz": gzip.compress(b'{"n": 3}\n'),
            "/in/_hidden/c.jsonl": b"no json",
            "/table/x.parquet": table.getvalue(),
        }
    )
    source = open_source("memory://in")
    assert [file.path for file in source.files] == [
        "memory://in/a.jsonl",
        "memory://in/deep/b.jsonl.gz",
    ]
    assert [row.record["n"] for row in source.iter_rows()] == [1, 2, 3]
    assert [row.record["n"] for row in source.iter_rows(2)] == [3]
    assert [row.record["n"] for row in open_source("memory://in/*.jsonl").iter_rows()] == [1, 2]
    tables = open_source("memory://table/x.parquet")
    assert [row.record["n"] for row in tables.iter_rows(1)] == [5]
    assert scan_input(tables, tabular=True).schema == pa.schema({"n": pa.int64()})


def test_changed_file_of_another_file_system_is_noticed(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/in.jsonl", json.dumps({"n": 1}).encode())
    (pinned,) = scan_input(open_source("memory://in.jsonl")).files
    assert is_unchanged(pinned, measure("memory://in.jsonl"))
    memory.pipe("/in.jsonl", json.dumps({"n": 2}).encode())
    assert not is_unchanged(pinned, measure("memory://in.jsonl"))
    memory.rm("/in.jsonl")
    assert measure("memory://in.jsonl").size == -1


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(JobInputError, match="cannot be opened: Protocol not known: nowhere"):
        open_source("nowhere://in.jsonl")
