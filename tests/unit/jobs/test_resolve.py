"""What an INPUT names: files, folders, globs, saved sets and data sets of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.errors import JobInputError
from serve.jobs.inputs.resolve import open_source

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


def numbers(name: str | Path, split: str | None = None) -> list[Any]:
    return [row.record["n"] for row in open_source(str(name), split=split).iter_rows()]


def refused(name: str | Path, split: str | None = None) -> str:
    with pytest.raises(JobInputError) as caught:
        open_source(str(name), split=split)
    return caught.value.detail


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", 3)
    write(tmp_path / "a" / "z.jsonl", 1, 2)
    write(tmp_path / "c.json", 4)
    for other in (".hidden.jsonl", "_x/d.jsonl", "out.jsonl.job/manifest.json", "state.txt"):
        write(tmp_path / other, 9)
    assert numbers(tmp_path) == [1, 2, 3, 4]
    assert numbers(f"{tmp_path}/*.jsonl") == [3]
    assert numbers(f"{tmp_path}/**/*.json*") == [9, 1, 2, 3, 4]  # named, so not left out


def test_the_output_in_the_folder_of_the_input_is_no_input(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 1)
    output = write(tmp_path / "out.jsonl", 9)
    for name in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        source = open_source(name, exclude=output)
        assert [row.record["n"] for row in source.iter_rows()] == [1]


def test_standard_input_is_refused() -> None:
    assert "save it to a file" in refused("-")


def test_a_file_is_known_by_how_it_begins(tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", 1, 2).rename(tmp_path / "in")
    assert numbers(tmp_path / "in") == [1, 2]
    write(tmp_path / "in.arrow", 3).rename(tmp_path / "other")
    assert numbers(tmp_path / "other") == [3]
    write(tmp_path / "in[1].log", 4)
    assert numbers(tmp_path / "in[1].log") == [4]


def test_what_is_no_input_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", 1)
    write(tmp_path / "in" / "b.parquet", 1)
    assert "several kinds: jsonl" in refused(tmp_path / "in")
    assert "no file or folder" in refused(tmp_path / "none.jsonl")
    assert "no file matches" in refused(tmp_path / "*.none")
    assert "is of a kind that is not read" in refused(write(tmp_path / "x.csv", 1))
    (tmp_path / "empty").mkdir()
    assert "no files to score" in refused(tmp_path / "empty")
    assert "is no folder" in refused(tmp_path / "in" / "a.jsonl", split="train")


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for index in (0, 1):
        write(tmp_path / "data" / f"train-{index:05}-of-00002.parquet", index)
    write(tmp_path / "data" / "train_prefs-00000-of-00001.parquet", 7)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", 8)
    assert numbers(tmp_path, "train") == [0, 1]
    assert numbers(tmp_path, "train_prefs") == [7]
    assert numbers(tmp_path, "test") == [8]
    assert "it has test, train, train_prefs" in refused(tmp_path, "validation")


def test_splits_by_words(tmp_path: Path) -> None:
    for number, name in enumerate(("my_train.jsonl", "test/0.jsonl", "contest.jsonl")):
        write(tmp_path / name, number)
    assert numbers(tmp_path, "train") == [0]
    assert numbers(tmp_path, "test") == [1]


def test_columns_of_several_files_are_put_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "a": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"n": [2.5], "b": [True]}), tmp_path / "1.parquet")
    source = open_source(str(tmp_path))
    assert source.schema == pa.schema([("n", pa.float64()), ("a", pa.string()), ("b", pa.bool_())])
    pq.write_table(pa.table({"n": ["text"]}), tmp_path / "2.parquet")
    assert "2.parquet do not go with those of" in refused(tmp_path)


def saved_set(folder: Path, split: str, *files: str, **state: Any) -> Path:
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        write(folder / file, number)
    data_files = [{"filename": file} for file in files]
    plain = {"_data_files": data_files, "_split": split, **state}
    (folder / "state.json").write_text(json.dumps(plain))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_set_is_read_in_its_own_order(tmp_path: Path) -> None:
    folder = saved_set(tmp_path / "set", "train", "z.arrow", "a.arrow")
    assert numbers(folder) == [0, 1]
    assert numbers(folder, "train") == [0, 1]
    assert "is the split 'train'" in refused(folder, "test")
    (folder / "a.arrow").unlink()
    assert "lacks a.arrow" in refused(folder)


def test_a_saved_set_by_reference_is_refused(tmp_path: Path) -> None:
    folder = saved_set(tmp_path / "set", "train", "a.arrow", _indices_files=[{"filename": "i"}])
    assert "flatten_indices" in refused(folder)


def test_splits_of_a_saved_dictionary(tmp_path: Path) -> None:
    saved_set(tmp_path / "train", "train", "a.arrow", "b.arrow")
    saved_set(tmp_path / "test", "test", "a.arrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "has the splits train, test, and no --split" in refused(tmp_path)
    assert "--split dev is given" in refused(tmp_path, "dev")
    assert numbers(tmp_path, "test") == [0]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert numbers(tmp_path) == [0, 1]


def test_what_datasets_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `eval`")
    rows = [{"n": number, "messages": [{"role": "user", "content": "x"}]} for number in range(2500)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one", num_shards=3)
    assert numbers(tmp_path / "one") == list(range(2500))
    whole = datasets.Dataset.from_list(rows).shuffle(seed=1)
    datasets.DatasetDict({"test": whole}).save_to_disk(tmp_path / "some")
    assert numbers(tmp_path / "some") == whole["n"]


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


def test_data_sets_of_the_hub(hub: Path) -> None:
    write(hub / "data" / "train-00000-of-00001.parquet", 1)
    write(hub / "data" / "test-00000-of-00001.parquet", 2)
    write(hub / "extra" / "more.jsonl", 3)
    (hub / "README.md").write_text("about")
    at = f"hf://datasets/org/set@{COMMIT}"
    assert "has the splits test, train" in refused("hf://datasets/org/set")
    assert numbers("hf://datasets/org/set", "train") == [1]
    assert numbers("hf://datasets/org/set/data/*.parquet") == [2, 1]
    assert numbers("hf://datasets/org/set/extra") == [3]
    assert numbers(f"{at}/extra/more.jsonl") == [3]
    assert open_source("hf://datasets/org/set/extra").name == f"{at}/extra"
    assert "no files to score" in refused("hf://datasets/org/set", "dev")


def test_no_such_data_set(hub: Path) -> None:
    assert "could not be fetched from the hub" in refused("hf://datasets/org/other")
    assert "at revision 'v9'" in refused("hf://datasets/org/set@v9/x.jsonl")
    assert "is no data set of the hub" in refused("hf://org/set")
    assert "write hf://datasets/ORG/NAME" in refused("hf://datasets/set")


def saved(folder: Path, *names: Any) -> Path:
    """A saved set that names these files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../outside.jsonl", "/etc/passwd", "a/b.arrow", "..", ".", "", "a\\b", "a\0b", 5, None, ["x"]],
)
def test_a_saved_set_never_leaves_its_folder(tmp_path: Path, name: Any) -> None:
    write(tmp_path / "outside.jsonl", 1)
    assert "only names of files and folders beside it" in refused(saved(tmp_path / "set", name))
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    assert "only names of files and folders beside it" in refused(splits)


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.jsonl", 1)
    linked = saved(tmp_path / "set", "data.arrow")
    (linked / "data.arrow").symlink_to(outside)
    assert f"is a link to {outside}, outside {linked}" in refused(linked)

    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    write(tmp_path / "other" / "data.arrow", 1)
    (splits / "train").symlink_to(saved(tmp_path / "other", "data.arrow"))
    assert "outside" in refused(splits)

    about = tmp_path / "about"
    about.mkdir()
    (about / "state.json").symlink_to(linked / "state.json")
    assert f"outside {about}" in refused(about)

    folder = tmp_path / "folder"
    write(folder / "a.jsonl", 1)
    (folder / "b.jsonl").symlink_to(outside)
    assert "name it itself or by a glob" in refused(folder)
    # Whoever names a file, or gives a glob, chose it.
    assert numbers(folder / "b.jsonl") == [1]
    assert numbers(f"{folder}/*.jsonl") == [1, 1]


def test_links_within_a_folder_and_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "sub" / "a.jsonl", 1)
    (folder / "b.jsonl").symlink_to("sub/a.jsonl")
    (tmp_path / "link").symlink_to(folder)
    assert numbers(tmp_path / "link") == [1, 1]

    cached = tmp_path / "datasets--Org--Set"
    snapshot = cached / "snapshots" / COMMIT / "data"
    snapshot.mkdir(parents=True)
    write(cached / "blobs" / "0.jsonl", 1)
    (snapshot / "a.jsonl").symlink_to("../../../blobs/0.jsonl")
    assert numbers(snapshot) == numbers(snapshot.parent) == [1]


@pytest.mark.parametrize(
    "state",
    ['{"_data_files": 5}', '{"_data_files": [5]}', '{"_data_files": [{}]}', "[" * 100_000, "x"],
)
def test_a_saved_set_that_cannot_be_understood_is_refused(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    assert str(tmp_path) in refused(tmp_path)


def test_a_description_of_a_saved_set_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "state.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 16,777,216 bytes" in refused(tmp_path)
