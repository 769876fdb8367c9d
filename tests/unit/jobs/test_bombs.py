"""Small inputs that unpack to much: read within bounded memory, or refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_core import ScoreError
from serve.errors import JobInputError
from serve.jobs.inputs import tabular
from serve.jobs.inputs.jsonl import MAX_ROW_BYTES
from serve.jobs.inputs.resolve import open_source
from serve.jobs.inputs.source import START, Position, Row

TEXT = "x" * (4 << 20)


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "_BATCH_BYTES", 16 << 20)
    monkeypatch.setattr(tabular, "_MOST_UNPACKED", 64 << 20)


def shared_text(num_rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), [TEXT])


def read(path: Path, start: Position = START) -> tuple[list[Row], int]:
    """Rows, their records replaced by a length, and the peak of Arrow's memory beyond before."""
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    rows = []
    for row in open_source(str(path)).iter_rows(start):
        most = max(most, pool.bytes_allocated() - before)
        rows.append(row._replace(record=len(row.record["prompt"]), cells=None))
    return rows, most


@pytest.mark.parametrize("kind", ["parquet", "parquet of dictionaries", "arrow"])
def test_a_text_that_rows_share_is_not_copied_for_all(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind.split()[0]}"
    table = pa.table({"prompt": shared_text(300), "n": range(300)})
    if kind == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    else:
        plain = kind == "parquet"
        pq.write_table(table, path, compression="zstd", store_schema=not plain)
        assert path.stat().st_size < 10_000
    rows, most = read(path)
    assert [row.record for row in rows] == [len(TEXT)] * 300
    assert most < 64 << 20  # of 1,200 MB
    # Chunks are cut by sizes, so a row counts what it takes once decoded.
    assert all(len(TEXT) <= row.size < 2 * len(TEXT) for row in rows)
    # They are the same wherever reading begins.
    again, _ = read(path, rows[9].next_position)
    assert again == rows[10:]


def test_ordinary_files_are_read_as_before(tmp_path: Path) -> None:
    texts = [f"{n} " * 500 for n in range(2_000)]
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "in.parquet")
    with tabular.open_parquet(tmp_path / "in.parquet") as file:
        assert tabular._choose_batch_rows(file, 0) == tabular._BATCH_ROWS


@pytest.mark.parametrize(
    "column", [["x" * (80 << 20)], pa.array([[7] * (10 << 20)]), pa.array([[None] * (10 << 20)])]
)
def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(JobInputError, match="write the file again with smaller row groups") as told:
        list(open_source(str(path)).iter_rows())
    assert "column `prompt" in told.value.detail


def packed(pieces: Iterator[bytes]) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*map(packer.compress, pieces), packer.flush()])


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.json.gz"])
def test_a_long_row_of_a_compressed_file_is_an_error_of_its_own(tmp_path: Path, name: str) -> None:
    good = json.dumps({"prompt": "a", "response": "b"}).encode()
    first, between, last = (b"[", b",", b"]") if name == "in.json.gz" else (b"", b"\n", b"\n")

    def pieces() -> Iterator[bytes]:
        yield first + good + between + b'{"prompt": "'
        for _ in range(MAX_ROW_BYTES // (1 << 20) + 1):
            yield b"x" * (1 << 20)
        yield b'"}' + between + good + last

    (tmp_path / name).write_bytes(packed(pieces()))
    assert (tmp_path / name).stat().st_size < 200_000
    before, long, after = list(open_source(str(tmp_path / name)).iter_rows())
    assert isinstance(long.record, ScoreError)
    assert "67,108,864" in long.record.message
    assert long.raw is not None
    assert len(long.raw) <= 1_000
    assert before.record == after.record == {"prompt": "a", "response": "b"}


def test_a_compressed_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 9)[:-9])
    with pytest.raises(JobInputError, match="is compressed and damaged"):
        list(open_source(str(tmp_path / "in.jsonl.gz")).iter_rows())
