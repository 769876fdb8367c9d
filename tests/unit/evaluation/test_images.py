"""VL-RewardBench from files: images in every form, and what the files of an evaluation have."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from benchmark_files import png
from command_line import invoke
from job_runs import FakeExecutor
from PIL import Image

from rm_core import BenchmarkDataError
from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from serve.errors import EvaluationError
from serve.evaluation.compare import compare, load_run
from serve.evaluation.data import load_data
from serve.evaluation.report import write_report
from serve.evaluation.result import Evaluation
from serve.evaluation.runner import choose_inputs
from serve.jobs.command import ExecutorOptions

NAME = "vl-rewardbench"
Evaluate = Callable[..., tuple[int, list[str]]]
PNG = png()
MAX_BYTES = 1_000_000


def load(path: Path) -> list[Item]:
    data = load_data(
        BENCHMARKS[NAME], str(path), split=None, exclude=Path("nowhere"), notify=lambda line: None
    )
    return list(data.items)


def rows_with(images: list[Any]) -> list[dict[str, Any]]:
    rows = benchmark_files.vl_rewardbench(len(images))
    return [row | {"image": image} for row, image in zip(rows, images, strict=True)]


def test_form_of_images_does_not_change_items(tmp_path: Path) -> None:
    images = [png(seed, (seed + 1, 5)) for seed in range(8)]
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    images[3] = file.getvalue()
    (tmp_path / "images" / "more").mkdir(parents=True)
    paths = [f"images/more/{number}.bin" for number in range(8)]
    for path, image in zip(paths, images, strict=True):
        (tmp_path / path).write_bytes(image)
    texts = [base64.b64encode(image).decode() for image in images]
    forms: dict[str, list[Any]] = {
        "bytes.parquet": [{"bytes": image, "path": None} for image in images],
        "paths.parquet": [{"bytes": None, "path": path} for path in paths],
        "plain.parquet": images,
        "paths.jsonl": paths,
        "uris.jsonl": [f"data:image/png;base64,{text}" for text in texts],
        "base64.jsonl": texts,
        "lines.jsonl": [f"{text[:60]}\n{text[60:]}" for text in texts],
    }
    benchmark_files.write(tmp_path, {name: rows_with(form) for name, form in forms.items()})
    expected = load(tmp_path / "bytes.parquet")
    assert [item.prompt[0]["content"][0]["image"] for item in expected] == images
    for name in forms:
        assert load(tmp_path / name) == expected, name


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.png", "item 'wildvision-battle-0' .* cannot be read .No such file or directory"),
        (
            "../outside.png",
            "'../outside.png' is outside of the folder of the input; give a file in",
        ),
        ("link.png", "'link.png' is outside of the folder"),
        ("images", "cannot be read .Is a directory"),
        ("empty.png", "'empty.png' is empty"),
        ("a\0b", "cannot be read .embedded null byte"),
        ("x" * 5000, "cannot be read .File name too long"),
        ("http://example.com/a.png", "is at an address, and no address is fetched"),
        ("file:///etc/hostname", "is at an address, and no address is fetched"),
        ("data:image/png;base64,@@", "which has no '@'"),
        ("data:image/png,abc", "is a data URI without base64"),
        ("data:image/png;base64,", "is empty"),
    ],
)
def test_unreadable_image_is_an_error_of_its_row(image: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(PNG)
    folder = benchmark_files.write(tmp_path / "data", {"a.jsonl": rows_with([image])})
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "images").mkdir()
    (folder / "empty.png").touch()
    with pytest.raises(BenchmarkDataError, match=f"(?s)row 0 of data/a.jsonl: .*{message}"):
        load(folder / "a.jsonl")


def test_absolute_path_is_read_below_the_folder_only(tmp_path: Path) -> None:
    for name in ("data/a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
        benchmark_files.write(tmp_path / "data", {"a.jsonl": rows_with([str(tmp_path / name)])})
        if name == "b.png":
            with pytest.raises(BenchmarkDataError, match="is outside of the folder"):
                load(tmp_path / "data" / "a.jsonl")
        else:
            (item,) = load(tmp_path / "data" / "a.jsonl")
            assert item.prompt[0]["content"][0]["image"] == PNG


def test_rows_with_repeated_id_are_numbered(tmp_path: Path) -> None:
    first = rows_with([base64.b64encode(PNG).decode()])[0] | {"id": "mathverse_1"}
    rows = [first | {"response": [f"{number}", "b"]} for number in range(3)]
    benchmark_files.write(tmp_path, {"a.jsonl": rows})
    assert [item.id for item in load(tmp_path / "a.jsonl")] == [
        "mathverse_1",
        "mathverse_1#2",
        "mathverse_1#3",
    ]
    # The answers swapped are no other pair.
    rows.append(rows[1] | {"response": ["b", "1"], "human_ranking": [1, 0]})
    benchmark_files.write(tmp_path, {"a.jsonl": rows})
    with pytest.raises(BenchmarkDataError, match=r"'mathverse_1#2' .* was already in row 1"):
        load(tmp_path / "a.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_scores(folder: Path, items: list[Item]) -> Path:
    lines = [
        {"id": item.id, "subset": item.subset, "rewards": [float(number % 3), 1.0]}
        for number, item in enumerate(items)
    ]
    (folder / "mine.jsonl").write_text(benchmark_files.lines(lines))
    return folder / "mine.jsonl"


def test_command_with_file_of_rewards(tmp_path: Path) -> None:
    data = benchmark_files.write(
        tmp_path / "data", {"test.parquet": rows_with([{"bytes": png(n)} for n in range(8)])}
    )
    scores = write_scores(tmp_path, load(data))
    out = tmp_path / "out"
    result = invoke(
        *("eval", NAME, "--data", data, "--scores", scores, "-o", out),
        *("--name", "Skywork-VL-Reward-7B"),
    )
    assert result.exit_code == 0, result.stderr
    summary = json.loads((out / "summary.json").read_text())
    # Rewards are (0, 1), (1, 1), (2, 1) in turn; even rows prefer the first answer, odd ones the
    # second. Rows 2 and 3 are right, and three are ties.
    assert summary["subsets"] == {
        "vlfeedback": 0.0,
        "wildvision-battle": 0.0,
        "povid": 1.0,
        "rlaif-v": 0.0,
        "rlhf-v": 1.0,
        "reasoning_tasks": 0.0,
    }
    assert summary["overall"] == 2 / 8
    assert summary["mean_of_sections"] == pytest.approx((0 / 3 + 2 / 3 + 0 / 2) / 3)
    assert summary["partial"]
    assert summary["used"]["ties"] == "wrong"
    images = {png(number) for number in range(8)}
    for path in out.iterdir():
        content = path.read_bytes()
        assert not any(image in content for image in images), path
        assert not any(base64.b64encode(image)[:40] in content for image in images), path
    prompts = [line["prompt"] for line in read_lines(out / "items.jsonl")]
    assert [prompt[0]["content"][0] for prompt in prompts] == [
        {
            "type": "image",
            "sha256": hashlib.sha256(png(number)).hexdigest(),
            "num_bytes": len(png(number)),
        }
        for number in range(8)
    ]
    page = (out / "report.html").read_text()
    assert f"[image of {len(png(1))} bytes, SHA-256 {hashlib.sha256(png(1)).hexdigest()}]" in page
    rows = json.loads(invoke("leaderboard", NAME, out, "--json").stdout)
    assert [row["model"] for row in rows] == [
        "Skywork/Skywork-VL-Reward-7B",
        "Skywork/Skywork-VL-Reward-7B",
        "Gemini-2.0-flash",
        "IXC-2.5-Reward-7B",
        "GPT-4o",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Skywork-VL-Reward-7B",
    ]
    other = tmp_path / "other"
    invoke("eval", NAME, "--data", data, "--scores", out / "scores.jsonl", "-o", other)
    compared = json.loads(invoke("compare-runs", out, other, "--json").stdout)
    assert (compared["num_items"], compared["agreement"]) == (8, 1.0)


def test_other_images_are_other_data(
    evaluate: Evaluate, executors: list[FakeExecutor], tmp_path: Path
) -> None:
    def write(number: int) -> Path:
        rows = rows_with([{"bytes": png(number + index)} for index in range(8)])
        return benchmark_files.write(tmp_path / f"data-{number}", {"a.parquet": rows})

    first = FakeExecutor(max_image_bytes=MAX_BYTES)
    executors.append(first)
    assert evaluate(NAME, "a", data=write(0))[0] == 0
    sent = [conversation for call in first.calls for conversation in call]
    assert len(sent) == 16
    assert [one[0]["content"][0] for one in sent[::2]] == [
        {"type": "image", "image": png(index)} for index in range(8)
    ]
    second = FakeExecutor(max_image_bytes=MAX_BYTES)
    executors.append(second)
    assert evaluate(NAME, "a", data=write(0))[0] == 0
    assert not second.calls
    with pytest.raises(EvaluationError, match="has an evaluation of other items"):
        evaluate(NAME, "a", data=write(1))
    executors.append(FakeExecutor(max_image_bytes=MAX_BYTES))
    assert evaluate(NAME, "b", data=write(1))[0] == 0
    runs = [
        load_run(tmp_path / name, benchmark=None, data=None, split=None, notify=print)
        for name in ("a", "b")
    ]
    with pytest.raises(EvaluationError, match="different texts or images"):
        compare(*runs)
    again = load_run(
        tmp_path / "a" / "scores.jsonl",
        benchmark=NAME,
        data=str(tmp_path / "data-0"),
        split=None,
        notify=print,
    )
    assert compare(runs[0], again).agreement == 1.0


def test_equal_texts_with_other_images_are_scored_separately(
    evaluate: Evaluate, executors: list[FakeExecutor], tmp_path: Path
) -> None:
    row = benchmark_files.vl_rewardbench(1)[0]
    rows = [row | {"id": f"a-{n}", "image": {"bytes": png(n // 2)}} for n in range(4)]
    data = benchmark_files.write(tmp_path / "data", {"a.parquet": rows})
    executor = FakeExecutor(max_image_bytes=MAX_BYTES)
    executors.append(executor)
    evaluate(NAME, data=data)
    assert sum(len(call) for call in executor.calls) == 4
    rewards = [line["rewards"] for line in read_lines(tmp_path / "out" / "scores.jsonl")]
    assert rewards[0] == rewards[1] != rewards[2] == rewards[3]


def test_report_describes_images_of_stored_items(tmp_path: Path) -> None:
    benchmark = BENCHMARKS[NAME]
    data = benchmark_files.write(tmp_path / "data", benchmark_files.EVERY[NAME])
    scored = tuple(ScoredItem(item, (0.0, 0.0)) for item in load(data))
    one = Evaluation(benchmark, "demo", benchmark.compute_result(scored), scored)
    write_report(tmp_path / "report.html", [one])
    page = (tmp_path / "report.html").read_text()
    assert page.count("[image of ") == 8


def test_model_of_text_is_refused_before_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    result = invoke("eval", NAME, "--data", tmp_path / "missing", "--model", "demo", "-o", out)
    assert result.exit_code == 1
    assert "each item of VL-RewardBench has an image, and this model reads text only" in (
        result.output
    )
    assert not out.exists()
    # Services say whether they read images.
    service = ExecutorOptions({}, ("http://127.0.0.1:1",))
    for limit in (None, MAX_BYTES):
        executor = FakeExecutor(max_image_bytes=limit)
        monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_, one=executor: one)
        if limit:
            assert choose_inputs(BENCHMARKS[NAME], service, out, overwrite=False) == "chats"
        else:
            with pytest.raises(EvaluationError, match="this model reads text only"):
                choose_inputs(BENCHMARKS[NAME], service, out, overwrite=False)
    assert choose_inputs(BENCHMARKS["rmb"], service, out, overwrite=False) == "chats"
