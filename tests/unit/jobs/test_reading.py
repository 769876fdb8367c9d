"""Readers of a job's input: any kind of file, whole or from any row on, gives the same rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rm_core import ScoreError
from serve.jobs.errors import JobInputError
from serve.jobs.inputs import json_array
from serve.jobs.inputs.opening import open_source
from serve.jobs.inputs.source import START, Position, Row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=12)
BLANKS = st.sampled_from(["", "\n", "  \r\n", "\t\n\n"])
in_one_folder = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def facts(row: Row) -> tuple[Any, ...]:
    return row[:6]  # without the cells: batches are other objects each time


def assert_resumes_anywhere(path: Path) -> list[Row]:
    """Every row of a file, having seen that reading may begin behind any of them."""
    source = open_source(str(path))
    rows = list(source.rows())
    assert [row.number for row in rows] == list(range(len(rows)))
    for row in [*rows[:5], *rows[-2:], *rows[len(rows) // 2 :][:2]]:
        position = Position(*json.loads(json.dumps(row.after)))
        again = [facts(r) for r in source.rows(position)]
        assert again == [facts(r) for r in rows[row.number + 1 :]]
    plain = [facts(r)[:2] for r in source.rows(decoded=False)]
    assert plain == [facts(r)[:2] for r in rows]
    return rows


@in_one_folder
@given(records=RECORDS, blanks=st.lists(BLANKS, min_size=12, max_size=12), ends=st.booleans())
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_lines(
    tmp_path: Path, name: str, records: list[Any], blanks: list[str], ends: bool
) -> None:
    text = "".join(
        blank + json.dumps(record, ensure_ascii=False) + "\n"
        for record, blank in zip(records, blanks, strict=False)
    )
    stored = (text if ends else text.rstrip("\n")).encode()
    (tmp_path / name).write_bytes(gzip.compress(stored) if name.endswith(".gz") else stored)
    rows = assert_resumes_anywhere(tmp_path / name)
    assert [row.record for row in rows] == records


@in_one_folder
@given(
    records=st.lists(VALUES, max_size=12),
    indent=st.sampled_from([None, 0, 1]),
    ascii=st.booleans(),
    block=st.integers(1, 40),
    mark=st.booleans(),
)
def test_an_array_of_json(
    tmp_path: Path, records: list[Any], indent: int | None, ascii: bool, block: int, mark: bool
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii)
    (tmp_path / "in.json").write_text("\ufeff" * mark + text + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_BLOCK_BYTES", block)
        rows = assert_resumes_anywhere(tmp_path / "in.json")
    assert [row.record for row in rows] == records


def test_lines_in_a_file_that_is_called_json(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [r.record for r in open_source(str(tmp_path / "in.json")).rows()] == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1}, {"a": 2}', "the end, not a comma"),
        ('[{"a": 1}, {"a": ', "row 1 is no JSON"),
        ('[{"a": 1} {"a": 2}]', "comes {, not a comma"),
        ('[{"a": 1}, ]', "row 1 is no JSON"),
        ('[{"a": 1}]\n[2]', "something follows"),
        ('[{"a": nonsense}]', "row 0 is no JSON"),
        ("[" * 100_000, "row 0 is no JSON"),
    ],
)
def test_a_damaged_array_says_where(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(JobInputError, match="no array of JSON records") as caught:
        list(open_source(str(tmp_path / "in.json")).rows())
    assert says in caught.value.detail


def test_equal_keys_are_an_error_that_keeps_the_line(tmp_path: Path) -> None:
    line = '{"id": 1, "messages": [{"role": "user", "role": "assistant"}]}'
    (tmp_path / "in.jsonl").write_text(line + "\n")
    (row,) = open_source(str(tmp_path / "in.jsonl")).rows()
    assert isinstance(row.record, ScoreError)
    assert "'role' stands twice" in row.record.message
    assert row.raw == line


def test_a_line_that_is_no_json_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": \n\xff\xfe\n[1]\n')
    rows = list(open_source(str(tmp_path / "in.jsonl")).rows())
    assert rows[0].record == {"a": 1}
    assert isinstance(rows[1].record, ScoreError)
    assert rows[1].record.code == "invalid_json"
    assert rows[1].raw == '{"a": '
    assert isinstance(rows[2].record, ScoreError)
    assert rows[3].record == [1]
    assert rows[3].raw is None


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{number}?" * 5}, {"role": "assistant", "content": "x"}]


def table(num_rows: int) -> pa.Table:
    return pa.table(
        {
            "id": range(num_rows),
            "messages": [messages(number) for number in range(num_rows)],
            "tags": [["a"] * (number % 3) for number in range(num_rows)],
        }
    )


def write_parquet(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path, row_group_size=700)


def write_stream(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as out:
        out.write_table(rows, max_chunksize=600)


def write_file(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
        out.write_table(rows, max_chunksize=600)


WRITERS = [("parquet", write_parquet), ("arrow", write_stream), ("arrow", write_file)]


@pytest.mark.parametrize("num_rows", [0, 1, 256, 1500])
@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_tables(
    tmp_path: Path, suffix: str, write: Callable[[Path, pa.Table], None], num_rows: int
) -> None:
    path = tmp_path / f"in.{suffix}"
    write(path, table(num_rows))
    rows = assert_resumes_anywhere(path)
    assert [row.record for row in rows] == table(num_rows).to_pylist()
    for row in rows[:: max(1, num_rows // 7)]:
        assert row.cells
        batch, index = row.cells
        assert batch.column("id")[index].as_py() == row.number


def test_several_files_are_one_input(tmp_path: Path) -> None:
    for index, size in enumerate((3, 0, 300)):
        write_parquet(tmp_path / f"{index}.parquet", table(size))
    source = open_source(str(tmp_path))
    rows = list(source.rows())
    assert [row.number for row in rows] == list(range(303))
    assert [row.record["id"] for row in rows] == [*range(3), *range(300)]
    for at in (0, 2, 3, 302):
        after = [facts(row) for row in source.rows(rows[at].after)]
        assert after == [facts(row) for row in rows[at + 1 :]]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet", "in.arrow"])
def test_a_file_that_became_shorter_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, table(10))
    elif name.endswith("arrow"):
        write_stream(path, table(10))
    else:
        text = b'{"a": 1}\n' * 3
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(JobInputError, match="shorter than when the job began"):
        list(open_source(str(path)).rows(START._replace(offset=1000, row=900)))


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.parquet", "in.arrow"])
def test_half_a_file_is_an_error(tmp_path: Path, name: str, cut: float) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, table(2000))
    elif name.endswith("arrow"):
        write_file(path, table(2000))
    else:
        path.write_bytes(gzip.compress(b'{"a": 1}\n' * 20_000))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(JobInputError, match=r"in\.\w+.*bring a whole copy"):
        list(open_source(str(path)).rows())


def test_times_finer_than_python_has(tmp_path: Path) -> None:
    whole = pa.table(
        {
            "t": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
            "d": pa.array([1_500_000_001], pa.duration("ns")),
            "u": pa.array([1_700_000_000_123_456], pa.timestamp("us")),
        }
    )
    write_parquet(tmp_path / "in.parquet", whole)
    (row,) = open_source(str(tmp_path / "in.parquet")).rows()
    assert row.record["t"].startswith("2023-11-14T22:13:20.123456789")
    assert row.record["d"] == pytest.approx(1.500000001)
    assert row.record["u"].isoformat() == "2023-11-14T22:13:20.123456"
