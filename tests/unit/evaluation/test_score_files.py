"""`scores.jsonl`: writing, reading, and errors about invalid lines."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.benchmarks.base import Item, ItemKey, Preference, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from serve.errors import EvaluationError, JobInputError, ScoreFileError
from serve.evaluation.files import read_summary
from serve.evaluation.scores import read_scores, write_scores
from serve.jobs.inputs import json_rows


def build_item(id: str, subset: str = "chat", num_responses: int = 2) -> Item:
    responses = tuple(f"answer {number}" for number in range(num_responses))
    prompt = [{"role": "user", "content": "2+2?"}]
    return Item(id, subset, prompt, responses, (Preference(0, 1),))


ITEMS = [build_item("1"), build_item("2"), build_item("2", "code"), build_item("3", "chat", 3)]
GOOD: list[dict[str, Any]] = [
    {"id": "1", "subset": "chat", "rewards": [1.5, -2]},
    {"id": "2", "subset": "code", "rewards": [0, 1]},
]


def read_rewards(path: Path) -> dict[ItemKey, Any]:
    scored = read_scores(path, ITEMS, BENCHMARKS["rmb"])
    return {key: one.rewards for key, one in scored.items()}


def write_lines(path: Path, *records: object) -> Path:
    jsonl = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in jsonl))
    return path


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2, max_size=2))
def test_scores_round_trip_exactly(
    tmp_path_factory: pytest.TempPathFactory, rewards: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scores.jsonl"
    write_scores(path, [ScoredItem(ITEMS[0], rewards)])
    assert read_rewards(path) == {ITEMS[0].key: rewards}


def test_scores_may_be_unordered_incomplete_or_compressed(tmp_path: Path) -> None:
    more = {"id": 3, "rewards": [1, 2, 3], "tool": "another"}
    path = write_lines(tmp_path / "scores.jsonl", more, "", *GOOD)
    expected = {
        ("3", "chat"): [1.0, 2.0, 3.0],
        ("1", "chat"): [1.5, -2.0],
        ("2", "code"): [0.0, 1.0],
    }
    assert read_rewards(path) == expected
    (tmp_path / "scores.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_rewards(tmp_path / "scores.jsonl.gz") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "1", "subset": "chat", "rewards": [0, 1]}, "already has rewards in line 1"),
        ({"id": "9", "rewards": [0, 1]}, 'no item of the data has the id "9"'),
        (
            {"id": "2", "subset": "math", "rewards": [0, 1]},
            "\"math\"; the id is in: 'chat', 'code'",
        ),
        ({"id": "2", "rewards": [0, 1]}, "2 items have the id.*select one with `subset`"),
        ({"id": "3", "rewards": [0, 1]}, "3 responses.*list of 3 numbers, but is 2 rewards"),
        ({"id": "3", "rewards": 1.5}, "but is 1.5"),
        ({"id": "3", "rewards": [0, 1, "2"]}, 'reward 2 of .* is "2"; it must be a number'),
        ({"id": "3", "rewards": [0, None, 2]}, "reward 1 of .* is null; it must be a number"),
        ({"id": "3", "rewards": [True, 1, 2]}, "reward 0 of .* is true; it must be a number"),
        ({"id": "3", "rewards": [0, math.nan, 2]}, "reward 1 of .* is NaN; .*Remove the line"),
        ({"id": "3", "rewards": [0, 1, -math.inf]}, "reward 2 of .* is -Infinity"),
        ({"id": "3", "rewards": [0, 1, 10**400]}, "reward 2 of .* is 1000"),
        ({"id": "3"}, "`rewards` is missing; the line has the keys: `id`"),
        ({"rewards": [0, 1]}, "`id` is missing"),
        ({"id": [3], "rewards": [0, 1, 2]}, "`id` must be text or an integer"),
        ([1, 2], "must be an object"),
        ('{"id": "3", ', "cannot be read as JSON"),
        ('{"id": "3", "id": "1", "rewards": [1]}', "'id' occurs twice"),
    ],
)
def test_invalid_line_raises_error(line: object, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "scores.jsonl", *GOOD, "", line)
    with pytest.raises(ScoreFileError, match=rf"scores.jsonl, line 4: .*{message}"):
        read_rewards(path)


def test_file_without_rewards_raises_error(tmp_path: Path) -> None:
    with pytest.raises(ScoreFileError, match="no rewards"):
        read_rewards(write_lines(tmp_path / "scores.jsonl", "", ""))
    with pytest.raises(ScoreFileError, match=r"has no line; .* no item could be scored"):
        read_rewards(write_lines(tmp_path / "scores.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_file_in_other_encoding_raises_error(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in GOOD), encoding=encoding)
    with pytest.raises(JobInputError, match=r"is UTF-(16|32).*only UTF-8 is read"):
        read_rewards(path)


def test_too_long_line_raises_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    path = write_lines(tmp_path / "scores.jsonl", *GOOD, {"id": "3", "more": "x" * 100})
    with pytest.raises(
        ScoreFileError, match=r"line 3: the line has \d+ bytes, and the maximum is 100"
    ):
        read_rewards(path)


@pytest.mark.parametrize("overall", ["NaN", "1e999", '0.5, "overall": 0.6'])
def test_summary_must_be_strict_json(tmp_path: Path, overall: str) -> None:
    path = tmp_path / "summary.json"
    rest = '"benchmark": "rmb", "model": "m", "num_items": 1, "sections": {}, "subsets": {}'
    path.write_text(f'{{{rest}, "overall": {overall}}}')
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_summary(path)
    path.write_text(f'{{{rest}, "overall": 0.5}}', encoding="utf-8-sig")
    assert read_summary(path)["overall"] == 0.5
