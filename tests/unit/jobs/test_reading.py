"""Readers of a job's input: every format gives the same rows, read whole or from any row."""

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
from serve.errors import JobInputError
from serve.jobs.inputs import json_rows
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.source import open_source

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=12)
BLANKS = st.sampled_from(["", "\n", "  \r\n", "\t\n\n"])
in_one_folder = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def without_cells(row: Row) -> tuple[Any, ...]:
    return row[:5]  # Arrow batches are new objects each time


def assert_resumes_anywhere(path: Path) -> list[Row]:
    """Return all rows of a file, after checking that reading may resume after any row."""
    source = open_source(str(path))
    rows = list(source.iter_rows())
    assert [row.number for row in rows] == list(range(len(rows)))
    for row in [*rows[:5], *rows[-2:], *rows[len(rows) // 2 :][:2]]:
        again = [without_cells(r) for r in source.iter_rows(row.number + 1)]
        assert again == [without_cells(r) for r in rows[row.number + 1 :]]
    plain = [without_cells(r)[:2] for r in source.iter_rows(decode=False)]
    assert plain == [without_cells(r)[:2] for r in rows]
    return rows


@in_one_folder
@given(records=RECORDS, blanks=st.lists(BLANKS, min_size=12, max_size=12), ends=st.booleans())
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_jsonl_is_read_from_any_row(
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
def test_json_array_is_read_from_any_row(
    tmp_path: Path, records: list[Any], indent: int | None, ascii: bool, block: int, mark: bool
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii)
    (tmp_path / "in.json").write_text("\ufeff" * mark + text + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_BLOCK_BYTES", block)
        rows = assert_resumes_anywhere(tmp_path / "in.json")
    assert [row.record for row in rows] == records


def test_json_file_with_lines_is_read(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [r.record for r in open_source(str(tmp_path / "in.json")).iter_rows()] == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1}, {"a": 2}', "followed by the end, not by a comma"),
        ('[{"a": 1}, {"a": ', "row 1 is not JSON"),
        ('[{"a": 1} {"a": 2}]', "followed by {, not by a comma"),
        ('[{"a": 1}, ]', "row 1 is not JSON"),
        ('[{"a": 1}]\n[2]', "text after the array"),
        ('[{"a": nonsense}]', "row 0 is not JSON"),
        ("[" * 100_000, "row 0 is truncated"),
    ],
)
def test_damaged_json_array_error_says_where(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(JobInputError, match="not an array of JSON records") as caught:
        list(open_source(str(tmp_path / "in.json")).iter_rows())
    assert says in caught.value.detail


def test_damaged_json_array_error_counts_rows_of_its_file_from_0(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}]')
    (tmp_path / "b.json").write_text('[{"a": 3}, {"a": nonsense}]')
    with pytest.raises(JobInputError, match=r"b\.json is not an array .*row 1 is not JSON"):
        list(open_source(str(tmp_path)).iter_rows())


GOOD = '{"id": 1, "text": "[{\\\\\\" \\u00e9 é 😀"}'
NOT_STRICT = [
    ('{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
    ('{"a": 1, "x": "]}", "a": [2]}', "'a' occurs twice"),
    ('{"a": 1, "\\u0061": 2}', "'a' occurs twice"),
    ('{"a": [NaN]}', "it has NaN"),
    ('{"a": -Infinity}', "it has -Infinity"),
    ('{"a": {"b": [1e400]}}', "1e400 is too large"),
    ("-1E+999", "is too large"),
    ('{"a": ' + "9" * 5000 + "}", "more than 4,300 digits"),
    ('{"a": ' + "[" * 100 + "]" * 100 + "}", "more than 100 lists and objects"),
    ('{"a": ' + "[" * 9000 + "]" * 9000 + "}", "more than 100 lists and objects"),
]
STRICT = [
    ('{"a": 1e-400}', {"a": 0.0}),
    ('{"a": -0.0}', {"a": -0.0}),
    ('{"a": ' + "9" * 400 + "}", {"a": 10**400 - 1}),
    ('{"a": "\\ud83d"}', {"a": "\ud83d"}),
    ('{"a": ' + "[" * 99 + "]" * 99 + "}", None),
    ('{"a": "' + "[" * 500 + '"}', {"a": "[" * 500}),
]


def write_rows(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    array = "[" + ",\n ".join(texts) + "]"
    content = (array if ".json" in name and "jsonl" not in name else "\n".join(texts)).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.json.gz"])
@pytest.mark.parametrize("block", [3, 50, 1 << 18])
def test_row_that_is_not_strict_json_is_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", block)
    texts = [text for bad, _ in NOT_STRICT for text in (GOOD, bad)]
    path = write_rows(tmp_path, name, [*texts, *(text for text, _ in STRICT)])
    rows = assert_resumes_anywhere(path)
    assert len(rows) == len(texts) + len(STRICT)
    for good, row, (text, says) in zip(rows[::2], rows[1::2], NOT_STRICT, strict=False):
        assert good.record == json.loads(GOOD)
        assert isinstance(row.record, ScoreError)
        assert row.record.code == "invalid_json"
        assert says in row.record.message
        assert row.raw == text
    for row, (_, value) in zip(rows[len(texts) :], STRICT, strict=True):
        assert value is None or str(row.record) == str(value)
        assert isinstance(row.record, dict)


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.json", "in.json.gz"])
@pytest.mark.parametrize("block", [7, 300, 1 << 18])
def test_too_long_row_is_error_and_other_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", block)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 400)
    monkeypatch.setattr(json_rows, "PREVIEW_BYTES", 20)
    texts = []
    for size in (380, 395, 399, 400, 401, 402, 405, 1000, 5000):
        filler = 'é\\"]}' * 3
        padding = size - len(f'{{"a": "{filler}"}}'.encode())
        texts += [f'{{"a": "{filler}{"x" * padding}"}}', GOOD]
    # Scalars, which do not end with a bracket, and values that are not strict JSON.
    texts += ["1" * 500, GOOD, '"' + "y" * 500 + '"', GOOD]
    texts += ['{"a": [' + "NaN, " * 200 + "1]}", GOOD, "[" * 300 + "]" * 300, GOOD]
    rows = assert_resumes_anywhere(write_rows(tmp_path, name, texts))
    assert [row.record for row in rows[1::2]] == [json.loads(GOOD)] * (len(texts) // 2)
    ends = 0 if name.startswith("in.json") and "jsonl" not in name else 1
    for row, text in zip(rows[::2], texts[::2], strict=True):
        if len(text.encode()) + ends <= 400:
            assert row.record == json.loads(text)
        else:
            assert isinstance(row.record, ScoreError)
            assert "bytes, and the maximum is 400" in row.record.message
            assert row.raw is not None
            assert len(row.raw.encode()) <= 20 * 4


@pytest.mark.parametrize("block", range(1, 12))
def test_too_long_element_ends_at_its_brackets_and_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", block)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 40)
    monkeypatch.setattr(json_rows, "PREVIEW_BYTES", 20)
    long = [json.dumps({"a": ['\\"]}', "\\\\", "x\\"] * 9}), json.dumps('"\\' * 40)]
    texts = [text for one in long for text in (one, GOOD[:8] + "}")]
    path = tmp_path / "in.json"
    path.write_text("[" + ",".join(texts) + "]")
    rows = assert_resumes_anywhere(path)
    assert [row.size for row in rows] == [len(text.encode()) for text in texts]
    assert [row.record for row in rows[1::2]] == [{"id": 1}] * 2


def test_long_blank_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 400)
    (tmp_path / "in.jsonl").write_text(f'{{"a": 1}}\n{" " * 5000}\n{{"a": 2}}\n{" " * 5000}')
    rows = assert_resumes_anywhere(tmp_path / "in.jsonl")
    assert [row.record for row in rows] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["[" + '{"a": "' + "x" * 900, "[" + "[" * 900, "[" + "1" * 900])
def test_unterminated_long_element_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 400)
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(JobInputError, match="not an array of JSON records"):
        list(open_source(str(tmp_path / "in.json")).iter_rows())


@pytest.mark.parametrize("name", ["in.jsonl", "in.json"])
def test_row_that_is_not_utf8_is_error_and_other_rows_are_read(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path, name, [GOOD, '{"a": "caf!", "b": "é"}', GOOD])
    path.write_bytes(path.read_bytes().replace(b"!", b"\xe9"))
    rows = assert_resumes_anywhere(path)
    assert isinstance(rows[1].record, ScoreError)
    assert "not UTF-8: byte 0xe9 at" in rows[1].record.message
    assert rows[1].raw == '{"a": "caf\\xe9", "b": "é"}'
    assert rows[0].record == rows[2].record == json.loads(GOOD)


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.json", "in.json.gz", "in"])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("start", ["", "\n", "漢字漢字 "])
def test_wide_encodings_are_refused_by_name(
    tmp_path: Path, name: str, encoding: str, start: str
) -> None:
    text = json.dumps([{"a": "ਅĊ"}] * 3, ensure_ascii=False)
    if "jsonl" in name or name == "in":
        text = text[1:-1].replace("}, ", "}\r\n")
    content = (start + text).encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(JobInputError, match=rf"is UTF-{encoding[4:6]}.*only UTF-8 is read.*iconv"):
        list(open_source(str(path)).iter_rows())


@pytest.mark.parametrize(
    ("start", "says"),
    [(b"\x28\xb5\x2f\xfd\x00", "zstd"), (b"PK\x03\x04", "zip"), (b"\xfd7zXZ\x00", "xz")],
)
def test_other_compressions_are_refused_by_name(tmp_path: Path, start: bytes, says: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(start + b"\x80\n" * 50)
    with pytest.raises(JobInputError, match=rf"is compressed with {says}"):
        list(open_source(str(tmp_path / "in.jsonl")).iter_rows())


def test_duplicate_key_error_keeps_line(tmp_path: Path) -> None:
    line = '{"id": 1, "messages": [{"role": "user", "role": "assistant"}]}'
    (tmp_path / "in.jsonl").write_text(line + "\n")
    (row,) = open_source(str(tmp_path / "in.jsonl")).iter_rows()
    assert isinstance(row.record, ScoreError)
    assert "'role' occurs twice" in row.record.message
    assert row.raw == line


def test_line_that_is_not_json_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": \n\xff\xfe\n[1]\n')
    rows = list(open_source(str(tmp_path / "in.jsonl")).iter_rows())
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
def test_tables_are_read_from_any_row(
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
    rows = list(source.iter_rows())
    assert [row.number for row in rows] == list(range(303))
    assert [row.record["id"] for row in rows] == [*range(3), *range(300)]
    for index in (0, 2, 3, 302):
        after = [without_cells(row) for row in source.iter_rows(index + 1)]
        assert after == [without_cells(row) for row in rows[index + 1 :]]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet", "in.arrow"])
def test_shortened_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, table(10))
    elif name.endswith("arrow"):
        write_stream(path, table(10))
    else:
        text = b'{"a": 1}\n' * 3
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(JobInputError, match="shorter than when the job began"):
        list(open_source(str(path)).iter_rows(900))


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.parquet", "in.arrow"])
def test_truncated_file_is_refused(tmp_path: Path, name: str, cut: float) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, table(2000))
    elif name.endswith("arrow"):
        write_file(path, table(2000))
    else:
        path.write_bytes(gzip.compress(b'{"a": 1}\n' * 20_000))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(JobInputError, match=r"in\.\w+.*copy the complete file again"):
        list(open_source(str(path)).iter_rows())


def test_nanosecond_times_become_text(tmp_path: Path) -> None:
    whole = pa.table(
        {
            "t": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
            "d": pa.array([1_500_000_001], pa.duration("ns")),
            "u": pa.array([1_700_000_000_123_456], pa.timestamp("us")),
        }
    )
    write_parquet(tmp_path / "in.parquet", whole)
    (row,) = open_source(str(tmp_path / "in.parquet")).iter_rows()
    assert row.record["t"].startswith("2023-11-14T22:13:20.123456789")
    assert row.record["d"] == pytest.approx(1.500000001)
    assert row.record["u"].isoformat() == "2023-11-14T22:13:20.123456"


def _broken_text() -> pa.Array:
    ends = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0")
    return pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"ab\xff\xfe")])


@pytest.mark.parametrize(
    ("column", "row", "says"),
    [
        (pa.array([0, 10**7], pa.date32()), 1, "date value out of range"),
        (pa.array([5 * 10**15, 0], pa.timestamp("ms")), 0, "date value out of range"),
        (pa.array([[], [5 * 10**15]], pa.list_(pa.timestamp("ms"))), 1, "date value out of range"),
        (_broken_text(), 1, "can't decode byte 0xff"),
        (
            pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"]),
            0,
            "duplicate field names",
        ),
    ],
)
def test_error_names_cell_that_python_cannot_hold(
    column: pa.Array, row: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "in.arrow"
    table = pa.table({"prompt": ["q", "q"], "response": ["a", "b"], "own": column})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(JobInputError, match=rf"row {row} of .* column `own` .*{says}"):
        list(open_source(str(path)).iter_rows())
