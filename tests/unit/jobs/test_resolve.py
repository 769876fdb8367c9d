"""Inputs of jobs: files, folders, globs, saved datasets and datasets of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import JobInputError
from serve.jobs.inputs.source import open_source
from serve.jobs.storage import LocalFile

COMMIT = "c" * 40


def write(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"n": list(numbers)}), path)
    elif path.suffix == ".arrow":
        rows = pa.table({"n": list(numbers)})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as out:
            out.write_table(rows)
    else:
        path.write_text("".join(f'{{"n": {number}}}\n' for number in numbers))
    return path


def read_numbers(name: str | Path, split: str | None = None) -> list[Any]:
    return [row.record["n"] for row in open_source(str(name), split=split).iter_rows()]


def get_refusal(name: str | Path, split: str | None = None) -> str:
    with pytest.raises(JobInputError) as caught:
        open_source(str(name), split=split)
    return caught.value.detail


def test_folder_is_read_as_its_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", 3)
    write(tmp_path / "a" / "z.jsonl", 1, 2)
    write(tmp_path / "c.json", 4)
    for ignored in (".hidden.jsonl", "_x/d.jsonl", "out.jsonl.job/manifest.json", "state.txt"):
        write(tmp_path / ignored, 9)
    assert read_numbers(tmp_path) == [1, 2, 3, 4]
    assert read_numbers(f"{tmp_path}/*.jsonl") == [3]
    assert read_numbers(f"{tmp_path}/**/*.json*") == [9, 1, 2, 3, 4]  # a glob includes hidden files


def test_output_in_input_folder_is_excluded(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 1)
    output = write(tmp_path / "out.jsonl", 9)
    for name in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        source = open_source(name, exclude=LocalFile(output))
        assert [row.record["n"] for row in source.iter_rows()] == [1]


def test_standard_input_is_refused() -> None:
    assert "save it to a file" in get_refusal("-")


def test_format_is_detected_by_first_bytes(tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", 1, 2).rename(tmp_path / "in")
    assert read_numbers(tmp_path / "in") == [1, 2]
    write(tmp_path / "in.arrow", 3).rename(tmp_path / "other")
    assert read_numbers(tmp_path / "other") == [3]
    write(tmp_path / "in[1].log", 4)
    assert read_numbers(tmp_path / "in[1].log") == [4]


def test_invalid_inputs_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", 1)
    write(tmp_path / "in" / "b.parquet", 1)
    assert "several formats: jsonl" in get_refusal(tmp_path / "in")
    assert "does not exist" in get_refusal(tmp_path / "none.jsonl")
    assert "no file matches" in get_refusal(tmp_path / "*.none")
    assert "has an unsupported format" in get_refusal(write(tmp_path / "x.csv", 1))
    (tmp_path / "empty").mkdir()
    assert "no files to score" in get_refusal(tmp_path / "empty")
    assert "is not a folder" in get_refusal(tmp_path / "in" / "a.jsonl", split="train")


def test_splits_of_sharded_files(tmp_path: Path) -> None:
    for index in (0, 1):
        write(tmp_path / "data" / f"train-{index:05}-of-00002.parquet", index)
    write(tmp_path / "data" / "train_prefs-00000-of-00001.parquet", 7)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", 8)
    assert read_numbers(tmp_path, "train") == [0, 1]
    assert read_numbers(tmp_path, "train_prefs") == [7]
    assert read_numbers(tmp_path, "test") == [8]
    assert "it has test, train, train_prefs" in get_refusal(tmp_path, "validation")


def test_splits_by_words_in_names(tmp_path: Path) -> None:
    for number, name in enumerate(("my_train.jsonl", "test/0.jsonl", "contest.jsonl")):
        write(tmp_path / name, number)
    assert read_numbers(tmp_path, "train") == [0]
    assert read_numbers(tmp_path, "test") == [1]


def test_columns_of_several_files_are_merged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "a": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"n": [2.5], "b": [True]}), tmp_path / "1.parquet")
    source = open_source(str(tmp_path))
    assert source.schema == pa.schema([("n", pa.float64()), ("a", pa.string()), ("b", pa.bool_())])
    pq.write_table(pa.table({"n": ["text"]}), tmp_path / "2.parquet")
    assert "2.parquet do not match the columns of" in get_refusal(tmp_path)


def write_saved_set(folder: Path, split: str, *files: str, **state: Any) -> Path:
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        write(folder / file, number)
    data_files = [{"filename": file} for file in files]
    plain = {"_data_files": data_files, "_split": split, **state}
    (folder / "state.json").write_text(json.dumps(plain))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_saved_dataset_is_read_in_order_of_state(tmp_path: Path) -> None:
    folder = write_saved_set(tmp_path / "set", "train", "z.arrow", "a.arrow")
    assert read_numbers(folder) == [0, 1]
    assert read_numbers(folder, "train") == [0, 1]
    assert "is the split 'train'" in get_refusal(folder, "test")
    (folder / "a.arrow").unlink()
    assert "lacks a.arrow" in get_refusal(folder)


def test_saved_selection_by_reference_is_refused(tmp_path: Path) -> None:
    folder = write_saved_set(
        tmp_path / "set", "train", "a.arrow", _indices_files=[{"filename": "i"}]
    )
    assert "flatten_indices" in get_refusal(folder)


def test_splits_of_saved_dataset_dict(tmp_path: Path) -> None:
    write_saved_set(tmp_path / "train", "train", "a.arrow", "b.arrow")
    write_saved_set(tmp_path / "test", "test", "a.arrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "has the splits train, test, and no --split" in get_refusal(tmp_path)
    assert "--split dev is given" in get_refusal(tmp_path, "dev")
    assert read_numbers(tmp_path, "test") == [0]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read_numbers(tmp_path) == [0, 1]


def test_datasets_save_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `eval`")
    rows = [{"n": number, "messages": [{"role": "user", "content": "x"}]} for number in range(2500)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one", num_shards=3)
    assert read_numbers(tmp_path / "one") == list(range(2500))
    whole = datasets.Dataset.from_list(rows).shuffle(seed=1)
    datasets.DatasetDict({"test": whole}).save_to_disk(tmp_path / "some")
    assert read_numbers(tmp_path / "some") == whole["n"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot of `org/set` in the hub's cache; the network is off."""
    repository = tmp_path / "datasets--org--set"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    return repository / "snapshots" / COMMIT


def test_hub_datasets_are_read(hub: Path) -> None:
    write(hub / "data" / "train-00000-of-00001.parquet", 1)
    write(hub / "data" / "test-00000-of-00001.parquet", 2)
    write(hub / "extra" / "more.jsonl", 3)
    (hub / "README.md").write_text("about")
    address = f"hf://datasets/org/set@{COMMIT}"
    assert "has the splits test, train" in get_refusal("hf://datasets/org/set")
    assert read_numbers("hf://datasets/org/set", "train") == [1]
    assert read_numbers("hf://datasets/org/set/data/*.parquet") == [2, 1]
    assert read_numbers("hf://datasets/org/set/extra") == [3]
    assert read_numbers(f"{address}/extra/more.jsonl") == [3]
    assert open_source("hf://datasets/org/set/extra").name == f"{address}/extra"
    assert "no files to score" in get_refusal("hf://datasets/org/set", "dev")


def test_unknown_hub_dataset_is_refused(hub: Path) -> None:
    assert "could not be downloaded from the hub" in get_refusal("hf://datasets/org/other")
    assert "at revision 'v9'" in get_refusal("hf://datasets/org/set@v9/x.jsonl")
    assert "is not a dataset of the hub" in get_refusal("hf://org/set")
    assert "write hf://datasets/ORG/NAME" in get_refusal("hf://datasets/set")


def write_state(folder: Path, *names: Any) -> Path:
    """Write the state of a saved dataset with these filenames."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../outside.jsonl", "/etc/passwd", "a/b.arrow", "..", ".", "", "a\\b", "a\0b", 5, None, ["x"]],
)
def test_saved_dataset_with_path_as_filename_is_refused(tmp_path: Path, name: Any) -> None:
    write(tmp_path / "outside.jsonl", 1)
    assert "only names of files and folders in the same folder" in get_refusal(
        write_state(tmp_path / "set", name)
    )
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    assert "only names of files and folders in the same folder" in get_refusal(splits)


def test_links_out_of_folder_are_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.jsonl", 1)
    linked = write_state(tmp_path / "set", "data.arrow")
    (linked / "data.arrow").symlink_to(outside)
    assert f"is a link to {outside}, outside {linked}" in get_refusal(linked)

    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    write(tmp_path / "other" / "data.arrow", 1)
    (splits / "train").symlink_to(write_state(tmp_path / "other", "data.arrow"))
    assert "outside" in get_refusal(splits)

    about = tmp_path / "about"
    about.mkdir()
    (about / "state.json").symlink_to(linked / "state.json")
    assert f"outside {about}" in get_refusal(about)

    folder = tmp_path / "folder"
    write(folder / "a.jsonl", 1)
    (folder / "b.jsonl").symlink_to(outside)
    assert "give the link itself or a glob" in get_refusal(folder)
    # A link that the user names, or that a glob matches, is followed.
    assert read_numbers(folder / "b.jsonl") == [1]
    assert read_numbers(f"{folder}/*.jsonl") == [1, 1]


def test_links_within_folder_and_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "sub" / "a.jsonl", 1)
    (folder / "b.jsonl").symlink_to("sub/a.jsonl")
    (tmp_path / "link").symlink_to(folder)
    assert read_numbers(tmp_path / "link") == [1, 1]

    cached = tmp_path / "datasets--Org--Set"
    snapshot = cached / "snapshots" / COMMIT / "data"
    snapshot.mkdir(parents=True)
    write(cached / "blobs" / "0.jsonl", 1)
    (snapshot / "a.jsonl").symlink_to("../../../blobs/0.jsonl")
    assert read_numbers(snapshot) == read_numbers(snapshot.parent) == [1]


@pytest.mark.parametrize(
    "state",
    ['{"_data_files": 5}', '{"_data_files": [5]}', '{"_data_files": [{}]}', "[" * 100_000, "x"],
)
def test_invalid_state_of_saved_dataset_is_refused(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    assert str(tmp_path) in get_refusal(tmp_path)


def test_too_large_state_of_saved_dataset_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "state.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 16,777,216 bytes" in get_refusal(tmp_path)
