"""Writers of outputs: the same rows with their results, exact types, reproducible bytes."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rm_core import Reward, ScoreError
from serve.errors import JobOutputError
from serve.jobs import writers
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.scan import scan_input
from serve.jobs.inputs.source import open_source
from serve.jobs.record_reader import try_parse_record
from serve.jobs.row_results import RESULT_NAMES, UNREAD_COLUMN, RowResults
from serve.jobs.writers import is_tabular, open_writer

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
ERROR = {"code": "invalid_conversation", "message": "no"}


def write_output(source: Path, output: Path, outputs: list[RowResults] | None = None) -> bytes:
    """Write an output and return its bytes; by default, rewards are computed from row numbers."""
    opened = open_source(str(source))
    tabular = is_tabular(output)
    scan = scan_input(opened, tabular=tabular)
    file = io.BytesIO()
    with open_writer(output, file, scan) as writer:
        for row in opened.iter_rows(decode=not (tabular and opened.schema is not None)):
            results = outputs[row.number] if outputs else build_output(row)
            writer.write(row, results.build_columns())
    return file.getvalue()


def build_output(row: Row) -> RowResults:
    return RowResults("conversation", [Reward(row.number / 3, 5)])


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_table(content: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(content))


def test_jsonl_lines_are_copied_unchanged(tmp_path: Path) -> None:
    text = '{"b": "é", "messages": 1, "a": -0.0, "s": "\\ud800"}\n[1]\nnot json\n'
    (tmp_path / "in.jsonl").write_text(text)
    rows = open_source(str(tmp_path / "in.jsonl")).iter_rows()
    parsed = [try_parse_record(row.record) for row in rows]
    outputs = [RowResults(record.kind, error=record.error) for record in parsed]
    out = write_output(tmp_path / "in.jsonl", tmp_path / "out.jsonl", outputs).decode().splitlines()
    assert out[0].startswith('{"b": "\\u00e9", "messages": 1, "a": -0.0, "s": "\\ud800", "error"')
    assert json.loads(out[1])["line"] == [1]
    assert json.loads(out[2])["line"] == "not json"
    assert json.loads(out[2])["error"]["code"] == "invalid_json"


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[{"messages": TURNS, "n": n} for n in range(3000)])
    plain = write_output(source, tmp_path / "out.jsonl")
    compressed = write_output(source, tmp_path / "out.jsonl.gz")
    assert gzip.decompress(compressed) == plain
    for name in ("a.jsonl.gz", "b.parquet"):
        assert write_output(source, tmp_path / name) == write_output(
            source, tmp_path / ("other" + name)
        )
    assert len(plain.splitlines()) == 3000
    assert compressed[4:8] == bytes(4)  # the gzip header has no time


def test_lines_become_table_and_back(tmp_path: Path) -> None:
    records = [
        {"messages": TURNS, "n": 1, "meta": {"a": [1]}, "s": "half \ud800", "reward": "old"},
        {"messages": TURNS, "x": 0.5, "n": None},
    ]
    source = write_lines(tmp_path / "in.jsonl", *records)
    content = write_output(source, tmp_path / "out.parquet")
    table = read_table(content)
    copied = ["messages", "n", "meta", "s", "reward", "x"]
    results = ["skyreward_reward", "error", "truncated", "warnings"]
    assert table.schema.names == [*copied, *results]
    assert table.column("skyreward_reward").type == pa.float32()
    first, second = table.to_pylist()
    assert first["s"] == "half \\ud800"
    assert (first["messages"], first["n"], first["meta"]) == (TURNS, 1, {"a": [1]})
    assert first["reward"] == "old"
    assert (second["x"], second["meta"], second["error"]) == (0.5, None, None)
    (tmp_path / "back.parquet").write_bytes(content)
    lines = write_output(tmp_path / "back.parquet", tmp_path / "out.jsonl").splitlines()
    # The table's metadata names its result columns, which are replaced.
    assert json.loads(lines[1])["skyreward_reward"] == 1 / 3
    assert "reward" in json.loads(lines[1])


def test_table_columns_keep_types(tmp_path: Path) -> None:
    size = 700
    words = pa.array(["a", "b"] * (size // 2)).dictionary_encode()
    table = pa.table(
        {
            "messages": [TURNS] * size,
            "t": pa.array(range(size), pa.timestamp("ns", "Europe/Berlin")),
            "d": pa.array([decimal.Decimal("1.10")] * size, pa.decimal128(9, 2)),
            "small": pa.array([1] * size, pa.int8()),
            "blob": pa.array([b"\xff\x00"] * size),
            "word": words,
            "vector": pa.array([[1.0, 2.0]] * size, pa.list_(pa.float32(), 2)),
            "map": pa.array([[("k", 1)]] * size, pa.map_(pa.string(), pa.int64())),
            "reward": ["old"] * size,
            "truncated": [True] * size,
        },
        metadata={"about": "kept"},
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=500)
    out = read_table(write_output(tmp_path / "in.parquet", tmp_path / "out.parquet"))
    kept = table.schema.names
    assert out.select(kept).schema.equals(
        table.select(kept).schema.with_metadata({b"about": b"kept"})
    )
    assert out.select(kept).equals(table.select(kept))
    results = ["skyreward_reward", "error", "skyreward_truncated", "warnings"]
    assert out.schema.names == [*kept, *results]
    assert out.column("skyreward_reward").to_pylist()[5] == pytest.approx(5 / 3)
    assert out.schema.metadata[b"about"] == b"kept"


def test_table_types_become_text_in_jsonl(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, 10, datetime.UTC)
    table = pa.table(
        {
            "t": pa.array([moment], pa.timestamp("us", "UTC")),
            "day": [moment.date()],
            "clock": pa.array([datetime.time(1, 2)], pa.time32("s")),
            "span": pa.array([datetime.timedelta(seconds=1.5)], pa.duration("ms")),
            "d": [decimal.Decimal("1.10")],
            "blob": [b"\xff\x00"],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    (line,) = write_output(tmp_path / "in.parquet", tmp_path / "out.jsonl").splitlines()
    assert json.loads(line) == {
        "t": "2024-05-06T07:08:09.000010+00:00",
        "day": "2024-05-06",
        "clock": "01:02:00",
        "span": 1.5,
        "d": "1.10",
        "blob": "/wA=",
        "map": [["k", 1]],
        "reward": 0.0,
    }


STRICT = json.JSONDecoder(parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_non_finite_numbers_become_null_and_are_counted(tmp_path: Path) -> None:
    numbers = [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324]
    table = pa.table(
        {
            "messages": [TURNS] * 5,
            "x": numbers,
            "half": pa.array(numbers, pa.float16()),
            "deep": [{"a": [{"b": number}]} for number in numbers],
            "map": pa.array([[("k", number)] for number in numbers], pa.map_(pa.string(), "float")),
            "s": ["\u00e9"] * 5,
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"))
    file = io.BytesIO()
    with open_writer(tmp_path / "out.jsonl", file, scan_input(source)) as writer:
        for row in source.iter_rows():
            writer.write(row, build_output(row).build_columns())
    lines = [STRICT.decode(line) for line in file.getvalue().decode().splitlines()]
    assert [line["x"] for line in lines] == [None, None, None, -0.0, 5e-324]
    assert [line["deep"] for line in lines[:1]] == [{"a": [{"b": None}]}]
    assert writer.null_counts == {"x": 3, "half": 3, "deep": 3, "map": 3}
    again = read_table(write_output(tmp_path / "in.parquet", tmp_path / "out.parquet"))
    for name in ("x", "half", "deep", "map"):
        assert str(again.column(name).to_pylist()) == str(table.column(name).to_pylist())


def test_moved_table_still_names_result_columns(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"messages": TURNS, "margin": 2.5})
    (tmp_path / "moved.parquet").write_bytes(write_output(source, tmp_path / "out.parquet"))
    again = scan_input(open_source(str(tmp_path / "moved.parquet")))
    assert dict(again.names.renames) == {"margin": "skyreward_margin"}
    assert again.names.replaced_columns == {"reward", "error", "truncated", "warnings"}
    (line,) = write_output(tmp_path / "moved.parquet", tmp_path / "out.jsonl").splitlines()
    assert json.loads(line) == {"messages": TURNS, "margin": 2.5, "reward": 0.0}


def test_unreadable_rows_do_not_overwrite_column_line(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"messages": TURNS, "line": 7})
    with source.open("ab") as file:
        file.write(b"no json\n")
    rows = read_table(write_output(source, tmp_path / "out.parquet")).to_pylist()
    assert [(row["line"], row["skyreward_line"]) for row in rows] == [(7, None), (None, "no json")]
    lines = [json.loads(line) for line in write_output(source, tmp_path / "out.jsonl").splitlines()]
    assert lines[0]["line"] == 7
    assert lines[1]["skyreward_line"] == "no json"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.dictionaries(
            st.sampled_from([*RESULT_NAMES, UNREAD_COLUMN, "skyreward_x", "id", "meta"]),
            st.none() | st.text(max_size=3) | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=5,
    ),
    escapes=st.booleans(),
)
def test_no_input_column_is_lost(
    tmp_path: Path, records: list[dict[str, Any]], escapes: bool
) -> None:
    lines = [json.dumps({"messages": TURNS, **record}) for record in records]
    if escapes:
        lines = [line.replace('"r', '"\\u0072').replace('"er', '"\\u0065r') for line in lines]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{line}\n" for line in lines))
    outputs = [
        RowResults("conversation", [Reward(1.5, 5, True, ("w",))]),
        RowResults(None, error=ScoreError(**ERROR)),
    ] * 3
    out = write_output(source, tmp_path / "out.jsonl", outputs).splitlines()
    for record, row_output, line in zip(records, outputs, out, strict=False):
        after = json.loads(line)
        assert after.items() >= record.items()
        results = {key: value for key, value in after.items() if key not in record}
        results.pop("messages")
        assert sorted(map(str, results.values())) == sorted(
            map(str, row_output.build_columns().values())
        )


def test_results_of_every_kind(tmp_path: Path) -> None:
    error = ScoreError(ERROR["code"], ERROR["message"])
    records = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "responses": ["a", "b"]},
        {"prompt": "p", "chosen": "a", "rejected": 1},
    ]
    low, high = Reward(0.1, 5, True, ("w",)), Reward(1e-9, 5)
    outputs = [
        RowResults("pair", [high, low]),
        RowResults("group", [low, error]),
        RowResults("pair", error=error),
    ]
    source = write_lines(tmp_path / "in.jsonl", *records)
    with pytest.raises(JobOutputError, match="`rejected` has both text and whole numbers"):
        write_output(source, tmp_path / "out.parquet", outputs)
    records[2]["rejected"] = None
    write_lines(source, *records)
    rows = read_table(write_output(source, tmp_path / "out.parquet", outputs)).to_pylist()
    assert rows[0]["margin"] == 1e-9 - 0.1
    assert (rows[0]["truncated"], rows[0]["warnings"], rows[0]["error"]) == (True, ["w"], None)
    assert rows[1]["rewards"] == [pytest.approx(0.1), None]
    assert rows[1]["error"] == ERROR | {"message": f"`responses[1]`: {ERROR['message']}"}
    assert rows[2]["error"] == ERROR
    assert rows[2]["margin"] is None
    assert "reward" not in rows[0]


def test_files_with_different_columns_are_one_table(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"n": [1], "s": [{"a": 1}]}), tmp_path / "in" / "0.parquet")
    pq.write_table(pa.table({"n": [2.5], "b": [True]}), tmp_path / "in" / "1.parquet")
    out = read_table(write_output(tmp_path / "in", tmp_path / "out.parquet")).to_pylist()
    assert [(row["n"], row["s"], row["b"]) for row in out] == [
        (1.0, {"a": 1}, None),
        (2.5, None, True),
    ]


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_GROUP_BYTES", 200_000)
    source = write_lines(tmp_path / "in.jsonl", *[{"n": n, "t": "x" * 100} for n in range(9000)])
    file = pq.ParquetFile(io.BytesIO(write_output(source, tmp_path / "out.parquet")))
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert sum(sizes) == 9000
    assert len(sizes) > 3
    assert max(sizes[:-1]) < 4000


def write_until_error(
    source: Path, output: Path, file: IO[bytes], error: BaseException | None
) -> None:
    opened = open_source(str(source))
    with open_writer(output, file, scan_input(opened, tabular=True)) as writer:
        for row in opened.iter_rows():
            writer.write(row, build_output(row).build_columns())
        if error:
            raise error


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.gz", "out.jsonl"])
@pytest.mark.parametrize("rows", [10, 5000])
def test_full_disk_error_is_raised(tmp_path: Path, name: str, rows: int) -> None:
    """The error of the operating system is not replaced."""
    source = write_lines(tmp_path / "in.jsonl", *[{"n": f"{n}" * 500} for n in range(rows)])
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left"),
    ):
        write_until_error(source, tmp_path / name, full, None)


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.gz"])
def test_error_leaves_file_unfinished(tmp_path: Path, name: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[{"n": n} for n in range(100)])
    file, whole = io.BytesIO(), io.BytesIO()
    write_until_error(source, tmp_path / name, whole, None)
    with pytest.raises(KeyboardInterrupt):
        write_until_error(source, tmp_path / name, file, KeyboardInterrupt())
    assert len(file.getvalue()) < len(whole.getvalue()) / 2


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.jsonl.zst", "out.arrow"])
def test_unsupported_output_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        JobOutputError, match=r"use a name that ends in \.jsonl, \.jsonl\.gz or \.parquet"
    ):
        is_tabular(tmp_path / name)
