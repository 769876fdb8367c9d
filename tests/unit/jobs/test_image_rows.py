"""Images of rows: where they may be, which files are read, and which model reads them."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import FakeExecutor, run_job, write_lines

from rm_core import ScoreError
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.sample_image import write_png
from serve.errors import BadRowError
from serve.jobs.columns import Columns
from serve.jobs.inputs import tabular
from serve.jobs.inputs.image_files import ImageFiles
from serve.jobs.inputs.source import open_source
from serve.jobs.record_reader import ParsedRecord, try_parse_record
from serve.jobs.storage import parse_location

WIDE, HIGH = write_png(100, 60), write_png(57, 90)
BASE64 = base64.b64encode(WIDE).decode()
URI = f"data:image/png;base64,{BASE64}"
PLACE = {"type": "image"}
MAX_BYTES = 1_000_000


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def ask(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}]


def answer(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    (folder / "wide.png").write_bytes(WIDE)
    (folder / "photos" / "high.png").write_bytes(HIGH)
    return folder


@pytest.fixture
def files(folder: Path) -> ImageFiles:
    return ImageFiles(folder / "in.jsonl", MAX_BYTES)


def get_contents(parsed: ParsedRecord) -> list[Any]:
    """Return the content of the first message of each conversation."""
    assert parsed.error is None, parsed.error
    assert not parsed.warnings
    contents = []
    for one in parsed.conversations:
        assert isinstance(one, list)
        contents.append(one[0]["content"])
    return contents


def get_error(record: dict[str, Any], files: ImageFiles | None) -> ScoreError:
    parsed = try_parse_record(record, image_files=files)
    error = parsed.error or next(c for c in parsed.conversations if isinstance(c, ScoreError))
    assert error.code in ("invalid_image", "invalid_conversation")
    return error


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (image("wide.png"), WIDE),
        (image("photos/../photos/high.png"), HIGH),
        ({"type": "image", "path": "photos/high.png"}, HIGH),
        ({"type": "image_url", "image_url": {"url": "photos/high.png"}}, HIGH),
        ({"type": "image_url", "image_url": "wide.png"}, WIDE),
        ({"type": "image_url", "image_url": {"url": URI}}, URI),
        (image(URI), URI),
        (image(BASE64), BASE64),
        (image(f"\n{BASE64[:8]}\n{BASE64[8:]}"), f"\n{BASE64[:8]}\n{BASE64[8:]}"),
        (image(WIDE), WIDE),
        (image({"bytes": WIDE, "path": "/nowhere.png"}), WIDE),
        (image({"bytes": BASE64, "path": None}), BASE64),
        (image({"bytes": None, "path": "wide.png"}), WIDE),
    ],
)
def test_part_becomes_image(part: dict[str, Any], expected: Any, files: ImageFiles) -> None:
    record = {"messages": [*ask(text("What?"), part), answer("A cat.")]}
    (content,) = get_contents(try_parse_record(record, image_files=files))
    assert content == [text("What?"), image(expected)]


FILLED = [image(WIDE), text("A"), image(HIGH), text("B")]
TWO = ["wide.png", {"bytes": HIGH, "path": None}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [*ask(PLACE, text("A"), PLACE, text("B")), answer("C")], "images": TWO},
        {"messages": [*ask("<image>A<image>B"), answer("C")], "images": TWO},
        {"prompt": "<image>A<image>B", "response": "C", "images": TWO},
        {"prompt": ask(PLACE, text("A"), PLACE, text("B")), "response": "C", "images": TWO},
        {
            "conversations": [
                {"from": "human", "value": "<image>A<image>B"},
                {"from": "gpt", "value": "an <image> in HTML"},
            ],
            "images": TWO,
        },
        {
            "messages": [
                # As tables have it: each part has the keys of all parts.
                *ask(
                    {"type": "image", "text": None, "image": {"bytes": None, "path": None}},
                    {"type": "text", "text": "A", "image": None},
                    {"type": "image", "text": None, "image": None},
                    {"type": "text", "text": "B", "image": None},
                ),
                {"role": "assistant", "content": [text("C")]},
            ],
            "images": TWO,
        },
        {
            "messages": json.dumps([*ask(PLACE, text("A"), PLACE, text("B")), answer("C")]),
            "images": TWO,
        },
    ],
)
def test_column_fills_places_of_prompt_in_order(record: dict[str, Any], files: ImageFiles) -> None:
    before = repr(record)
    parsed = try_parse_record(record, image_files=files)
    assert get_contents(parsed) == [FILLED]
    assert parsed.num_image_bytes == len(WIDE)
    assert repr(record) == before


@pytest.mark.parametrize("value", ["wide.png", {"bytes": WIDE, "path": None}, WIDE, ["wide.png"]])
def test_column_without_places_goes_before_first_question(value: Any, files: ImageFiles) -> None:
    question = {"role": "user", "content": "What?"}
    record = {"prompt": [question], "chosen": [answer("a")], "rejected": [answer("b")]}
    parsed = try_parse_record({**record, "image": value}, image_files=files)
    assert get_contents(parsed) == [[image(WIDE), text("What?")]] * 2
    with_system = [{"role": "system", "content": "Be brief."}, question, answer("a")]
    parsed = try_parse_record({"messages": with_system, "images": value}, image_files=files)
    (conversation,) = parsed.conversations
    assert isinstance(conversation, list)
    assert conversation[1]["content"] == [image(WIDE), text("What?")]


def test_each_whole_conversation_of_pair_has_images_of_column(files: ImageFiles) -> None:
    prompt = ask(PLACE, text("A"), PLACE, text("B"))
    record = {"chosen": [*prompt, answer("a")], "rejected": [*prompt, answer("b")], "images": TWO}
    assert get_contents(try_parse_record(record, image_files=files)) == [FILLED, FILLED]


def test_group_shares_images_and_reads_file_once(files: ImageFiles) -> None:
    record = {"prompt": "<image>Q", "responses": ["a", "b", 5], "images": ["wide.png"]}
    parsed = try_parse_record(record, image_files=files)
    assert parsed.num_image_bytes == len(WIDE)
    contents = [one[0]["content"] for one in parsed.conversations[:2] if isinstance(one, list)]
    assert contents == [[image(WIDE), text("Q")]] * 2
    assert contents[0][0]["image"] is contents[1][0]["image"]
    assert isinstance(parsed.conversations[2], ScoreError)


def test_prompt_next_to_whole_conversations_has_equal_image(files: ImageFiles) -> None:
    whole = [*ask(image("wide.png"), text("Q")), answer("a")]
    record = {"prompt": ask(image("wide.png"), text("Q")), "chosen": whole, "rejected": whole}
    assert get_contents(try_parse_record(record, image_files=files))[0][0] == image(WIDE)
    other = {**record, "prompt": ask(image("photos/high.png"), text("Q"))}
    assert "prompt" in get_error(other, files).message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [*ask(PLACE, text("Q")), answer("a")]}, "places for 1, and 0 are given"),
        (
            {"messages": [*ask(PLACE, text("Q")), answer("a")], "images": TWO},
            r"places for 1, and 2 are given.*--ignore-column",
        ),
        (
            {"messages": [*ask("<image><image><image>"), answer("a")], "images": TWO},
            "places for 3, and 2 are given",
        ),
        (
            {"messages": [*ask(image(URI), text("Q")), answer("a")], "images": TWO},
            "places for 0, and 2 are given",
        ),
        ({"prompt": "Q", "responses": ["a"], "image": URI, "images": TWO}, "ambiguous"),
        ({"prompt": "<image>", "response": "a", "images": [3]}, "image of `images` is a number"),
        ({"prompt": "<image>", "response": "a", "images": [b""]}, "is empty"),
        ({"prompt": "Q", "response": "a", "images": TWO, "videos": ["a.mp4"]}, "`videos`"),
        ({"prompt": "Q", "response": "a", "rejected_images": TWO}, "`rejected_images`"),
        (
            {"messages": [*ask(text("Q")), {"role": "assistant", "content": [PLACE]}]},
            "the answer has a place for an image",
        ),
    ],
)
def test_images_that_do_not_fit_are_error_of_row(
    record: dict[str, Any], message: str, files: ImageFiles
) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(get_error(record, files).message)


def test_only_files_below_folder_are_read(
    folder: Path, files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = folder.parent / "secret.png"
    outside.write_bytes(WIDE)
    (folder / "link.png").symlink_to(outside)
    (folder / "way").symlink_to(folder.parent)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "inside.png").symlink_to("photos/high.png")
    os.mkfifo(folder / "pipe.png")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "empty.png").touch()
    wrong = {
        "../secret.png": "outside",
        str(outside): "outside",
        "link.png": "outside",
        "way/secret.png": "outside",
        "photos/../../secret.png": "outside",
        "/dev/zero": "outside",
        "loop.png": "cannot be read",
        "pipe.png": "not a regular file",
        "photos": "cannot be read",
        "huge.png": "more than 1,000,000 bytes",
        "missing.png": "No such file",
        "empty.png": "is empty",
        "null\0byte.png": "cannot be read",
        "x" * 5000: "cannot be read",
        "https://example.com/a.png": "no address is fetched",
        "file:///etc/passwd": "no address is fetched",
        "s3://bucket/a.png": "no address is fetched",
    }
    for path, reason in wrong.items():
        for record in (
            {"messages": [*ask(image(path)), answer("a")]},
            {"prompt": "Q", "response": "a", "images": [path]},
            {"prompt": "Q", "response": "a", "image": {"bytes": None, "path": path}},
        ):
            error = get_error(record, files)
            assert reason in error.message
            assert len(error.message) < 700
    for path in ("inside.png", str(folder / "photos" / "high.png")):
        record = {"messages": [*ask(image(path)), answer("a")]}
        assert get_contents(try_parse_record(record, image_files=files)) == [[image(HIGH)]]
    record = {"messages": [*ask(image("wide.png")), answer("a")]}
    for nowhere in (None, parse_location("memory://rows/in.jsonl").local_path):
        error = get_error(record, ImageFiles(nowhere, MAX_BYTES))
        assert "not in a file on this machine" in error.message


def test_model_of_text_refuses_images_and_reads_no_file(folder: Path) -> None:
    missing = [*ask(image("missing.png"), text("Q")), answer("a")]
    error = get_error({"messages": missing}, None)
    assert "this model reads only text" in error.message
    assert "vision-language reward model" in error.message
    error = get_error({"prompt": "Q", "response": "a", "images": ["missing.png"]}, None)
    assert "`images`, and this model reads only text" in error.message
    assert "--ignore-column images" in error.message
    ignored = Columns(ignored=("images",))
    row = {"prompt": "<image>Q", "response": "a", "images": ["missing.png"]}
    assert get_contents(try_parse_record(row, ignored)) == ["<image>Q"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def create_executor(fail_at: int | None = None) -> FakeExecutor:
    return FakeExecutor(fail_at=fail_at, max_image_bytes=MAX_BYTES)


def write_rows(folder: Path, num_rows: int) -> Path:
    rows = [
        {
            "id": number,
            "prompt": f"<image>Question {number % 5}",
            "response": f"Answer {number % 3}",
            "images": ["wide.png" if number % 2 else "photos/high.png"],
        }
        for number in range(num_rows)
    ]
    return write_lines(folder / "in.jsonl", rows)


def test_output_keeps_columns_and_images_are_part_of_conversation(folder: Path) -> None:
    source, output, executor = write_rows(folder, 60), folder / "out.jsonl", create_executor()
    summary = run_job(source, output, executor)
    assert summary.num_failed == 0
    rows = read(output)
    for before, after in zip(read(source), rows, strict=True):
        assert {name: after[name] for name in before} == before
        assert after.keys() - before.keys() <= {"reward", "truncated", "warnings"}
    assert len({row["reward"] for row in rows}) == 30
    assert sum(map(len, executor.calls)) == 30  # equal images and texts are scored once
    (folder / "wide.png").write_bytes(HIGH)
    changed = create_executor()
    run_job(source, folder / "changed.jsonl", changed)
    assert sum(map(len, changed.calls)) == 15  # now all images are equal


def test_stopped_job_with_images_resumes_with_equal_output(folder: Path) -> None:
    source = write_rows(folder, 60)
    first, second = create_executor(), create_executor()
    run_job(source, folder / "whole.jsonl", first)
    with pytest.raises(RuntimeError):
        run_job(source, folder / "out.jsonl", create_executor(fail_at=2))
    run_job(source, folder / "out.jsonl", second)
    assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert second.calls == first.calls[2:]


def test_files_of_images_count_for_size_of_chunk(folder: Path) -> None:
    for number in range(40):
        (folder / f"{number}.png").write_bytes(WIDE + bytes(900_000))
    rows = [{"prompt": "Q", "response": "a", "image": f"{number}.png"} for number in range(40)]
    source, executor = write_lines(folder / "in.jsonl", rows), create_executor()
    run_job(source, folder / "out.jsonl", executor, chunk_rows=2_000)
    assert [len(call) for call in executor.calls] == [1]  # equal images
    for number in range(40):
        (folder / f"{number}.png").write_bytes(WIDE + bytes([number]) * 900_000)
    executor = create_executor()
    run_job(source, folder / "other.jsonl", executor, chunk_rows=2_000)
    assert [len(call) for call in executor.calls] == [10, 10, 10, 10]


def test_tables_hold_images_as_datasets_writes_them(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "prompt": [ask(PLACE, text("Q"))] * 3,
        "chosen": [[answer(f"a{n}")] for n in range(3)],
        "rejected": [[answer(f"b{n}")] for n in range(3)],
        "images": [[{"bytes": one, "path": "x.png"}] for one in (WIDE, HIGH, WIDE)],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column(
        "images", datasets.Sequence(datasets.Image())
    )
    dataset.to_parquet(folder / "in.parquet")
    dataset.save_to_disk(folder / "saved")
    for source in (folder / "in.parquet", folder / "saved"):
        executor = create_executor()
        output = folder / f"{source.name}-out.parquet"
        assert run_job(source, output, executor).num_failed == 0
        calls = [conversation for call in executor.calls for conversation in call]
        contents = [conversation[0]["content"] for conversation in calls]
        assert contents == [[image(one), text("Q")] for one in (WIDE, WIDE, HIGH, HIGH, WIDE, WIDE)]
        table = pq.read_table(output)
        before = pa.Table.from_batches(
            [row.cells[0].slice(row.cells[1], 1) for row in open_source(str(source)).iter_rows()]  # type: ignore[index]
        )
        assert table.select(before.column_names).to_pylist() == before.to_pylist()


def test_large_rows_of_table_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"image": [os.urandom(10_000) for _ in range(300)]})
    pq.write_table(table, tmp_path / "in.parquet")
    monkeypatch.setattr(tabular, "_BATCH_BYTES", 200_000)
    rows = [*open_source(str(tmp_path / "in.parquet")).iter_rows()]
    assert [row.record["image"] for row in rows] == table["image"].to_pylist()
    assert {row.cells[0].num_rows for row in rows if row.cells} <= set(range(1, 21))


def test_fail_fast_names_row_of_image(folder: Path) -> None:
    rows = [{"prompt": "Q", "response": "a", "image": name} for name in ("wide.png", "missing.png")]
    source = write_lines(folder / "in.jsonl", rows)
    with pytest.raises(BadRowError, match=r"row 1 .*missing\.png.*invalid_image"):
        run_job(source, folder / "out.jsonl", create_executor(), fail_fast=True)


def test_judge_refuses_images(files: ImageFiles) -> None:
    record = {"prompt": ask(image(WIDE), text("Q")), "chosen": "a", "rejected": "b"}
    for images in (files, None):
        parsed = try_parse_record(record, kind="judge", image_files=images)
        found = [parsed.error, *parsed.conversations]
        errors = [one for one in found if isinstance(one, ScoreError)]
        assert errors
        assert not any(isinstance(one, JudgePair) for one in found)
        assert "reads only text" in errors[0].message


def test_mark_without_image_is_text_with_warning(files: ImageFiles) -> None:
    row = {"prompt": "<image>Q", "response": "<image>"}
    question = {"role": "user", "content": "<image>Q"}
    without: list[dict[str, Any]] = [{}, {"images": []}, {"image": None}]
    for images in without:
        parsed = try_parse_record({**row, **images}, image_files=files)
        assert parsed.conversations == ([question, answer("<image>")],)
        assert [warning.partition(":")[0] for warning in parsed.warnings] == ["mark_without_image"]
    prompt = ask(image("wide.png"), text("<image>"))
    for record in ({**row, "images": ["wide.png"]}, {**row, "prompt": prompt}):
        assert not try_parse_record(record, image_files=files).warnings
    assert not try_parse_record(row).warnings  # of a model that reads only text
