"""Small files that decompress to large inputs: read within bounded memory, or refused."""

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
from serve.jobs.inputs.json_rows import MAX_ROW_BYTES
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.source import open_source
from serve.jobs.storage import LocalFile

TEXT = "x" * (4 << 20)


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "_BATCH_BYTES", 16 << 20)
    monkeypatch.setattr(tabular, "_MOST_UNPACKED", 64 << 20)


def shared_text(num_rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), [TEXT])


def read(path: Path, first_row: int = 0) -> tuple[list[Row], int]:
    """Return rows with the length of their prompt as the record, and the peak of Arrow's memory."""
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    rows = []
    for row in open_source(str(path)).iter_rows(first_row):
        peak = max(peak, pool.bytes_allocated() - before)
        rows.append(row._replace(record=len(row.record["prompt"]), cells=None))
    return rows, peak


@pytest.mark.parametrize("kind", ["parquet", "parquet of dictionaries", "arrow"])
def test_text_shared_by_rows_is_not_copied_for_every_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind.split()[0]}"
    table = pa.table({"prompt": shared_text(300), "n": range(300)})
    if kind == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    else:
        plain = kind == "parquet"
        pq.write_table(table, path, compression="zstd", store_schema=not plain)
        assert path.stat().st_size < 10_000
    rows, peak = read(path)
    assert [row.record for row in rows] == [len(TEXT)] * 300
    assert peak < 64 << 20  # of 1,200 MB
    # Chunks are limited by row sizes, so the size of a row is its size after decoding.
    assert all(len(TEXT) <= row.size < 2 * len(TEXT) for row in rows)
    # Sizes are the same wherever reading begins.
    again, _ = read(path, 10)
    assert again == rows[10:]


def test_ordinary_parquet_file_is_read_in_full_batches(tmp_path: Path) -> None:
    texts = [f"{n} " * 500 for n in range(2_000)]
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "in.parquet")
    with tabular.open_parquet(LocalFile(tmp_path / "in.parquet")) as file:
        assert tabular._choose_batch_rows(file, 0) == tabular._BATCH_ROWS


@pytest.mark.parametrize(
    "column", [["x" * (80 << 20)], pa.array([[7] * (10 << 20)]), pa.array([[None] * (10 << 20)])]
)
def test_column_that_decompresses_to_too_much_is_refused(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(
        JobInputError, match="write the file again with smaller row groups"
    ) as caught:
        list(open_source(str(path)).iter_rows())
    assert "column `prompt" in caught.value.detail


def compress_stream(blocks: Iterator[bytes]) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*map(packer.compress, blocks), packer.flush()])


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.json.gz"])
def test_too_long_row_of_compressed_file_is_error_of_that_row(tmp_path: Path, name: str) -> None:
    good = json.dumps({"prompt": "a", "response": "b"}).encode()
    first, between, last = (b"[", b",", b"]") if name == "in.json.gz" else (b"", b"\n", b"\n")

    def blocks() -> Iterator[bytes]:
        yield first + good + between + b'{"prompt": "'
        for _ in range(MAX_ROW_BYTES // (1 << 20) + 1):
            yield b"x" * (1 << 20)
        yield b'"}' + between + good + last

    (tmp_path / name).write_bytes(compress_stream(blocks()))
    assert (tmp_path / name).stat().st_size < 200_000
    before, long, after = list(open_source(str(tmp_path / name)).iter_rows())
    assert isinstance(long.record, ScoreError)
    assert "67,108,864" in long.record.message
    assert long.raw is not None
    assert len(long.raw) <= 1_000
    assert before.record == after.record == {"prompt": "a", "response": "b"}


def test_truncated_compressed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 9)[:-9])
    with pytest.raises(JobInputError, match="is compressed and damaged"):
        list(open_source(str(tmp_path / "in.jsonl.gz")).iter_rows())
