"""The scan before scoring: rows are counted, files pinned, types and kinds of records found."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import JobInputError, JobOutputError
from serve.jobs.columns import Columns
from serve.jobs.inputs.scan import InputScan, is_unchanged, scan_input
from serve.jobs.inputs.source import open_source
from serve.jobs.storage import FileState, InputFile, LocalFile

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def write(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def scan(path: Path, **options: Any) -> InputScan:
    return scan_input(open_source(str(path)), **options)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet", "in.json"])
def test_rows_are_counted_and_files_pinned(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"n": range(1000)}), path, row_group_size=300)
    elif name == "in.json":
        path.write_text(json.dumps([{"n": number} for number in range(1000)], indent=1))
    else:
        write(path, *({"n": number} for number in range(1000)))
    source = open_source(str(path))
    result = scan_input(source)
    assert result.num_rows == 1000
    assert result.num_bytes == sum(row.size for row in source.iter_rows())
    (file,) = result.files
    assert (file.path, file.size) == (str(path), path.stat().st_size)
    assert (file.sha256, file.num_hashed_bytes) == (sha256(path), file.size)
    assert (result.schema, result.kinds) == (None, frozenset())


def test_limit_ends_scan(tmp_path: Path) -> None:
    line = {"n": 1, "text": "x" * 10_000}
    write(tmp_path / "a.jsonl", line, line)
    write(tmp_path / "b.jsonl", *[line] * 1000)
    write(tmp_path / "c.jsonl", line)
    result = scan(tmp_path, limit=2)
    assert (result.num_rows, len(result.files)) == (2, 1)
    result = scan(tmp_path, limit=3)
    assert (result.num_rows, len(result.files)) == (3, 2)
    assert result.files[1].num_hashed_bytes < result.files[1].size
    assert is_unchanged(
        result.files[1],
        InputFile(LocalFile(tmp_path / "b.jsonl"), FileState(result.files[1].size, 1)),
    )
    assert scan(tmp_path, limit=5000).num_rows == 1003
    assert scan(tmp_path, limit=0).num_rows == 0


def test_is_unchanged_detects_changed_content(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"n": 1})
    (pinned,) = scan(path).files

    def get_current() -> InputFile:
        return open_source(str(path)).files[0]

    assert is_unchanged(pinned, get_current())
    os.utime(path, ns=(1, 1))
    assert is_unchanged(pinned, get_current())  # new modification time, same content
    write(path, {"n": 2})
    os.utime(path, ns=(1, 1))
    assert not is_unchanged(pinned, get_current())
    write(path, {"n": 10})
    assert not is_unchanged(pinned, get_current())


def test_scan_reports_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = write(tmp_path / "in.jsonl", *[{"n": 1}] * 25_000)
    scan(path, on_progress=lambda *so_far: calls.append(so_far))
    assert [num_rows for num_rows, _ in calls] == [10_000, 20_000]
    assert 0 < calls[0][1] <= calls[1][1] <= path.stat().st_size


def test_one_type_holds_every_value_of_a_column(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {"messages": TURNS, "n": 1, "x": 1, "meta": {"a": 1}, "tags": [], "none": None},
        {"messages": TURNS, "n": None, "x": 1.5, "meta": {"b": ["t"]}, "empty": {}},
        {"n": 2**63, "tags": [{"k": True}], "more": [[1], [None, 2]]},
        [1, 2],
    )
    with path.open("ab") as file:
        file.write(b"no json\n")
    with pytest.raises(JobOutputError, match="`line` has both text and lists"):
        scan(path, tabular=True)
    result = scan(path, tabular=True, limit=3)
    text = pa.string()
    assert result.schema == pa.schema(
        {
            "messages": pa.list_(pa.struct({"role": text, "content": text})),
            "n": pa.uint64(),
            "x": pa.float64(),
            "meta": pa.struct({"a": pa.int64(), "b": pa.list_(text)}),
            "tags": pa.list_(pa.struct({"k": pa.bool_()})),
            "none": pa.null(),
            "empty": pa.struct({"_empty": pa.null()}),
            "more": pa.list_(pa.list_(pa.int64())),
        }
    )
    assert result.kinds == {"conversation"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((1, "x"), "`a` has both text and whole numbers"),
        ((True, 1), "`a` has both true/false and whole numbers"),
        (({"b": [1]}, {"b": ["x"]}), r"`a.b\[\]` has both text and whole numbers"),
        (([1], {"b": 1}), "`a` has both objects and lists"),
        ((2**64,), "`a` has whole numbers of more than 64 bits"),
        ((-1, 2**63), "`a` has whole numbers of more than 64 bits"),
        ((2**53 + 1, 0.5), "`a` has both whole numbers and decimals"),
        (({str(key): 1 for key in range(3000)},), "`a` has 3000 different keys"),
    ],
)
def test_column_without_common_type_is_refused(
    tmp_path: Path, values: tuple[Any, ...], says: str
) -> None:
    path = write(tmp_path / "in.jsonl", *({"a": value} for value in values))
    with pytest.raises(JobOutputError, match=says) as caught:
        scan(path, tabular=True)
    assert "ends in .jsonl" in caught.value.detail


def test_kinds_of_lines(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    group = {"prompt": "p", "responses": ["a"]}
    path = write(tmp_path / "in.jsonl", pair, group, {"none": 1}, pair | {"responses": None})
    assert scan(path, tabular=True).kinds == {"pair", "group"}
    named = Columns(chosen="responses", rejected="prompt")
    assert scan(path, tabular=True, columns=named).kinds == {"pair"}


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ({"messages": [TURNS], "chosen": [True]}, {"conversation"}),
        ({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]}, {"pair"}),
        # Columns of several shapes: the rows decide.
        ({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"], "answer": ["x"]}, {"pair"}),
        (
            {
                "prompt": ["p", "p"],
                "chosen": ["a", None],
                "rejected": ["b", None],
                "answer": ["x", "x"],
            },
            {"pair", "conversation"},
        ),
        ({"text": ["x"]}, set()),
    ],
)
def test_kinds_of_tables(tmp_path: Path, columns: dict[str, Any], kinds: set[str]) -> None:
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "in.parquet")
    result = scan(tmp_path / "in.parquet", tabular=True)
    assert result.kinds == kinds
    assert result.schema == table.schema


def test_damaged_parquet_is_refused_by_scan(tmp_path: Path) -> None:
    table = pa.table({"n": range(50_000)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=1000, use_dictionary=False)
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(JobInputError, match="copy the complete file again"):
        scan(tmp_path / "in.parquet")


WORDS = {
    "cp1252": "Où est né Molière ? À Paris, en été, né français.",
    "shift_jis": "東京はどこですか。日本です。とても大きい町です。",
    "euc_kr": "서울은 어디에 있습니까? 한국에 있습니다.",
    "cp1251": "Где находится Москва? Это столица России, большой город.",
    "iso2022_jp": "東京はどこですか。日本です。とても大きい町です。",
}


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.json"])
@pytest.mark.parametrize("encoding", WORDS)
def test_other_encodings_are_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    records = [{"messages": TURNS, "text": WORDS[encoding] * (1 + n % 3)} for n in range(9)]
    plain = {"messages": TURNS}
    texts = [json.dumps(one, ensure_ascii=False) for one in (*records, plain)]
    text = "[" + ", ".join(texts) + "]" if name == "in.json" else "\n".join(texts)
    content = text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    says = r"is not UTF-8: 9 of its 10 rows .* save the file as UTF-8"
    if (encoding, name) == ("iso2022_jp", "in.json"):
        says = "the file may be ISO-2022 text: save it as UTF-8"
    with pytest.raises(JobInputError, match=says):
        scan(path)


def test_few_damaged_lines_are_not_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", *[{"text": "plain"}] * 5)
    path.write_bytes(b'{"text": "caf\xe9"}\n' + path.read_bytes())
    assert scan(path).num_rows == 6
    good = '{"text": "café"}\n'.encode()
    path.write_bytes(good * 3 + b'{"text": "caf\xe9"}\n' * 2)
    assert scan(path).num_rows == 5
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(JobInputError, match="is not UTF-8"):
        scan(path)


OURS = {"code": "template_error", "message": "no"}


@pytest.mark.parametrize("tabular", [False, True])
@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.parquet"])
def test_columns_named_like_results_are_found_in_any_row(
    tmp_path: Path, name: str, tabular: bool
) -> None:
    rows: list[dict[str, Any]] = [{"messages": TURNS, "n": n} for n in range(300)]
    rows[290] |= {"margin": 1.5, "warnings": "mine"}
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows, pa.Table.from_pylist([rows[290]]).schema), path)
    elif name == "in.json":
        path.write_text(json.dumps(rows))
    else:
        write(path, *rows)
    result = scan(path, tabular=tabular)
    renamed = {"margin": "skyreward_margin", "warnings": "skyreward_warnings"}
    assert dict(result.names.renames) == renamed
    given = scan(path, tabular=tabular, replace_results=True)
    assert (dict(given.names.renames), given.names.replaced_columns) == ({}, {"margin", "warnings"})
    assert scan(path, limit=100).names.renames.keys() <= (
        renamed.keys() if name.endswith("parquet") else set()
    )


def test_escaped_keys_are_found_and_nested_names_ignored(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"m\\u0061rgin": 1}\n')
    assert scan(path).names.renames
    path.write_text('{"a": {"margin": 1}, "b": "\\"margin\\": 1", "c": ["margin", "error"]}\n')
    assert not scan(path).names.renames


@pytest.mark.parametrize(
    ("errors", "is_ours"),
    [
        ([OURS, None], True),
        ([None], False),
        (["annotator 3"], False),
        ([OURS, "annotator 3"], False),
        ([{"code": "rate_limit", "message": "no"}], False),
        ([{**OURS, "more": 1}], False),
        ([{"code": ["template_error"], "message": "no"}], False),
    ],
)
def test_errors_of_earlier_run_are_recognized_by_code(
    tmp_path: Path, errors: list[Any], is_ours: bool
) -> None:
    names = scan(write(tmp_path / "in.jsonl", *[{"error": e} for e in errors])).names
    assert (names.replaced_columns == {"error"}, "error" in names.renames) == (is_ours, not is_ours)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.RunEndEncodedArray.from_arrays([1], [7]),
        pa.UnionArray.from_dense(
            pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]
        ),
    ],
)
def test_types_unknown_to_parquet_are_refused_by_scan(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    table = pa.table({"prompt": ["2+2?"], "response": ["4"], "own": column})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(JobOutputError, match=r"`own` has values of type .* JSON lines instead"):
        scan(path, tabular=True)
    assert scan(path).num_rows == 1
