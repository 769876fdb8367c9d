"""Loading of a benchmark's rows in every published form, and errors about invalid rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_files
import fsspec
import pyarrow as pa
import pytest

from rm_core import BenchmarkDataError
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from serve.errors import JobInputError
from serve.evaluation.data import BenchmarkData, load_data

REWARDBENCH = benchmark_files.rewardbench()


def load(name: str, location: Path | str | None, **options: Any) -> tuple[BenchmarkData, list[str]]:
    lines: list[str] = []
    data = load_data(
        build_benchmark(name),
        None if location is None else str(location),
        notify=lines.append,
        **{"split": None, "exclude": Path("nowhere"), **options},
    )
    return data, lines


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


@pytest.mark.parametrize("name", list(benchmark_files.EVERY))
def test_each_benchmark_is_read_from_its_files(name: str, tmp_path: Path) -> None:
    rows_by_file = benchmark_files.EVERY[name]
    data, lines = load(name, benchmark_files.write(tmp_path / "data", rows_by_file))
    num_rows = sum(len(rows) for rows in rows_by_file.values())
    assert len(data.items) == num_rows // (10 if name == "rewardmath" else 1)
    assert data.name == str(tmp_path / "data")
    assert not lines


@pytest.mark.parametrize("name", list(benchmark_files.EVERY))
def test_each_benchmark_is_read_from_address(
    name: str, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    folder = benchmark_files.write(tmp_path / "data", benchmark_files.EVERY[name])
    local, _ = load(name, folder)
    memory.put(str(folder), "/bucket/data", recursive=True)
    for location in ("memory://bucket/data", "memory://bucket/data/", "memory://bucket/data/**"):
        data, lines = load(name, location)
        assert data.items == local.items
        assert data.name == location
        assert not lines


def test_errors_name_file_at_address_as_local_file(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    rows = [REWARDBENCH[0], {**REWARDBENCH[1], "chosen": 7}]
    folder = benchmark_files.write(tmp_path / "data", {"deep/a.jsonl": rows})
    memory.put(str(folder), "/bucket/data", recursive=True)
    messages = set()
    for location in (folder, f"{folder}/*/*", "memory://bucket/data", "memory://bucket/data/*/*"):
        with pytest.raises(BenchmarkDataError) as caught:
            load("rewardbench", location)
        messages.add(caught.value.detail)
    (message,) = messages
    assert message.startswith("row 1 of data/deep/a.jsonl")


def test_benchmark_files_cover_all_benchmarks() -> None:
    assert list(benchmark_files.EVERY) == list(BENCHMARKS)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.ndjson"]
)
def test_file_format_does_not_change_items(name: str, tmp_path: Path) -> None:
    expected, _ = load(
        "rewardbench", benchmark_files.write(tmp_path / "other", {"b.jsonl": REWARDBENCH})
    )
    benchmark_files.write(tmp_path, {name: REWARDBENCH})
    for location in (tmp_path / name, f"{tmp_path}/{name[:2]}*"):
        data, _ = load("rewardbench", location)
        assert data.items == expected.items


def test_saved_dataset_uses_official_split(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(REWARDBENCH)
    for split, rows in (("raw", table.slice(0, 5)), ("filtered", table)):
        folder = tmp_path / split
        folder.mkdir()
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(rows)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["raw", "filtered"]}))
    assert len(load("rewardbench", tmp_path)[0].items) == len(REWARDBENCH)
    assert len(load("rewardbench", tmp_path, split="raw")[0].items) == 5


def test_folder_with_several_splits_uses_official_split(tmp_path: Path) -> None:
    folder = benchmark_files.write(
        tmp_path,
        {
            "data/raw-00000-of-00001.jsonl": REWARDBENCH,
            "data/filtered-00000-of-00001.jsonl": REWARDBENCH[:7],
            "README.md.json/.cache.json": [],
        },
    )
    (folder / ".gitattributes").write_text("hidden")
    data, lines = load("rewardbench", folder)
    assert len(data.items) == 7
    assert "raw-00000-of-00001.jsonl" in lines[0]
    assert len(load("rewardbench", folder, split="raw")[0].items) == len(REWARDBENCH)


def test_rm_bench_skips_total_file(tmp_path: Path) -> None:
    rows_by_file = benchmark_files.rm_bench()
    total = [
        {**row, "domain": name.split("_")[0]} for name, rows in rows_by_file.items() for row in rows
    ]
    benchmark_files.write(tmp_path, {**rows_by_file, "total_dataset.json": total})
    data, lines = load("rm-bench", tmp_path)
    assert "total_dataset.json" in lines[0]
    from_total, _ = load("rm-bench", tmp_path / "total_dataset.json")
    assert {item.key for item in from_total.items} == {item.key for item in data.items}
    assert {item.subset for item in data.items} == {
        "chat", "code", "math", "safety-refuse", "safety-response",
    }  # fmt: skip


def test_rmb_skips_other_files_of_its_repository(tmp_path: Path) -> None:
    benchmark_files.write(tmp_path / "RMB_dataset", benchmark_files.rmb())
    benchmark_files.write(tmp_path, {"eval/results.json": [{"accuracy": 1}]})
    data, lines = load("rmb", tmp_path)
    assert len(data.items) == 8
    assert "results.json" in lines[0]
    # A subfolder can be read as well.
    assert len(load("rmb", tmp_path / "RMB_dataset" / "BoN_set")[0].items) == 4


def test_judgebench_uses_pairs_of_gpt_4o(tmp_path: Path) -> None:
    def get_file_name(model: str) -> str:
        return f"dataset=judgebench,response_model={model}.jsonl"

    gpt, claude = "gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"
    benchmark_files.write(
        tmp_path,
        {
            get_file_name(gpt): benchmark_files.judgebench(),
            get_file_name(claude): benchmark_files.judgebench(4, model=claude),
        },
    )
    data, lines = load("judgebench", tmp_path)
    assert len(data.items) == 6
    assert claude in lines[0]


def test_output_folder_is_excluded_from_data(tmp_path: Path) -> None:
    benchmark_files.write(tmp_path, {"a.jsonl": REWARDBENCH, "results/scores.jsonl": [{"id": "x"}]})
    data, _ = load("rewardbench", tmp_path, exclude=tmp_path / "results")
    assert len(data.items) == len(REWARDBENCH)


def patch_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Replace downloads from the hub by local folders; return the requested repositories."""
    requested: list[str] = []

    def download(repo: str, *, revision: str | None, **_: Any) -> str:
        requested.append(repo)
        return str(folder / repo.replace("/", "--") / "snapshots" / "c0ffee")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return requested


def test_default_data_is_read_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "allenai--reward-bench" / "snapshots" / "c0ffee" / "data"
    benchmark_files.write(
        snapshot,
        {
            "raw-00000-of-00001.parquet": REWARDBENCH,
            "filtered-00000-of-00001.parquet": REWARDBENCH[:9],
        },
    )
    requested = patch_hub(monkeypatch, tmp_path)
    data, _ = load("rewardbench", None)
    assert requested == ["allenai/reward-bench"]
    assert len(data.items) == 9
    assert data.name == "hf://datasets/allenai/reward-bench@c0ffee"
    named, _ = load("rewardbench", "hf://datasets/allenai/reward-bench")
    assert named.items == data.items


def test_ppe_correctness_reads_five_hub_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, one in enumerate(build_benchmark("ppe-correctness").hub):
        folder = tmp_path / one.repository.replace("/", "--") / "snapshots" / "c0ffee" / "data"
        rows = benchmark_files.ppe_correctness(number + 1, seed=number)
        benchmark_files.write(folder, {"train-00000-of-00001.parquet": rows})
    patch_hub(monkeypatch, tmp_path)
    data, _ = load("ppe-correctness", None)
    sections = [item.metadata["section"] for item in data.items]
    assert sections == [s for n, s in enumerate(dict.fromkeys(sections), 1) for _ in range(n)]
    assert len(set(sections)) == 5


def test_rmb_is_not_on_the_hub() -> None:
    with pytest.raises(BenchmarkDataError, match=r"not on the hub.*--data"):
        load("rmb", None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*REWARDBENCH, REWARDBENCH[3]], r"row 12 of data/a.jsonl.*'3'.*row 3 of data/a.jsonl"),
        ([{**REWARDBENCH[0], "subset": "jokes"}], "row 0 of data/a.jsonl.*'jokes'"),
        ([{k: v for k, v in REWARDBENCH[0].items() if k != "chosen"}], "row 0.*column `chosen`"),
        ([{**REWARDBENCH[0], "rejected": None}], "row 0.*`rejected` is null"),
        ([REWARDBENCH[0], "text"], "row 1 of data/a.jsonl.*rows are objects"),
    ],
)
def test_data_error_names_file_and_row(rows: list[Any], message: str, tmp_path: Path) -> None:
    folder = benchmark_files.write(tmp_path / "data", {"a.jsonl": rows})
    with pytest.raises(BenchmarkDataError, match=message):
        load("rewardbench", folder)


def test_row_numbers_are_per_file(tmp_path: Path) -> None:
    rows = {"a.jsonl": REWARDBENCH[:4], "b.jsonl": [*REWARDBENCH[4:6], {"id": 1}]}
    with pytest.raises(BenchmarkDataError, match=r"row 2 of data/b.jsonl"):
        load("rewardbench", benchmark_files.write(tmp_path / "data", rows))


def test_broken_line_or_empty_file_raises_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(REWARDBENCH[0]) + "\n{broken\n")
    with pytest.raises(BenchmarkDataError, match=r"row 1 of .*/a.jsonl: the line cannot be read"):
        load("rewardbench", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(BenchmarkDataError, match="has no rows"):
        load("rewardbench", tmp_path / "b.jsonl")
    with pytest.raises(JobInputError, match=r"the file or folder .* does not exist"):
        load("rewardbench", tmp_path / "c.jsonl")
