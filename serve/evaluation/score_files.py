"""`scores.jsonl`: one line of rewards per item, read strictly.

Any tool may have written the file. Errors name the line; items without a line make the result
partial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Item, ItemKey, ScoredItem
from serve.errors import ScoreFileError
from serve.jobs.atomic_io import write_atomically
from serve.jobs.inputs.json_rows import build_length_error, parse_line, split_lines
from serve.jobs.inputs.text import open_decompressed

SCORES = "scores.jsonl"
_MAX_VALUE_CHARS = 60


def write_scores(path: Path, scored_items: Iterable[ScoredItem]) -> None:
    """Write the rewards of items, in the order of the items."""
    lines = (
        json.dumps(
            {"id": one.item.id, "subset": one.item.subset, "rewards": list(one.rewards)},
            ensure_ascii=False,
            allow_nan=False,
        )
        for one in scored_items
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_scores(path: Path, items: Sequence[Item]) -> dict[ItemKey, list[float]]:
    """Return the rewards of the items that have a line.

    Args:
        path: path of the file, which may be compressed as `.gz`.
        items: items of the benchmark.

    Raises:
        ScoreFileError: a line is not a JSON object with `id` and `rewards`, matches zero or several
            items, or repeats an item; a reward is not a finite number; the number of rewards is
            wrong; the file has no rewards.
    """
    items_by_id: dict[str, list[Item]] = {}
    for item in items:
        items_by_id.setdefault(item.id, []).append(item)
    rewards: dict[ItemKey, list[float]] = {}
    lines: dict[ItemKey, int] = {}
    number = 0
    with open_decompressed(str(path)) as file:
        for number, (line, size) in enumerate(split_lines(file), 1):
            if line.isspace():
                continue
            location = f"{path}, line {number}"
            record = _parse_record(line, size, location)
            item = _find_item(record, items_by_id, location)
            if item.key in rewards:
                raise ScoreFileError(
                    f"{location}: {_describe_item(item)} already has rewards in line "
                    f"{lines[item.key]}; remove one of the two lines"
                )
            rewards[item.key] = _read_rewards(record, item, location)
            lines[item.key] = number
    if not rewards:
        raise ScoreFileError(f"{path} has {number} lines but no rewards; write one line per item")
    return rewards


def _parse_record(line: bytes, size: int, location: str) -> Mapping[str, Any]:
    # NaN is accepted here, so that the later error can name the item.
    parsed = (
        build_length_error("line", line, size)
        if size > len(line)
        else parse_line(line, finite=False)
    )
    record = parsed[0]
    if isinstance(record, ScoreError):
        raise ScoreFileError(f"{location}: {record.message}")
    if not isinstance(record, Mapping):
        raise ScoreFileError(
            f"{location}: the line must be an object with `id`, `subset` and `rewards`, but is "
            f"{_format_value(record)}"
        )
    for name in ("id", "rewards"):
        if record.get(name) is None:
            keys = ", ".join(f"`{key}`" for key in record) or "none"
            raise ScoreFileError(f"{location}: `{name}` is missing; the line has the keys: {keys}")
    return record


def _find_item(
    record: Mapping[str, Any], items_by_id: Mapping[str, list[Item]], location: str
) -> Item:
    item_id, subset = record["id"], record.get("subset")
    if isinstance(item_id, bool) or not isinstance(item_id, str | int):
        raise ScoreFileError(
            f"{location}: `id` must be text or an integer, but is {_format_value(item_id)}"
        )
    with_id = items_by_id.get(str(item_id), [])
    matches = [item for item in with_id if subset is None or item.subset == subset]
    if len(matches) == 1:
        return matches[0]
    if not with_id:
        raise ScoreFileError(f"{location}: no item of the data has the id {_format_value(item_id)}")
    subsets = ", ".join(repr(item.subset) for item in with_id[:8])
    if not matches:
        raise ScoreFileError(
            f"{location}: no item with the id {_format_value(item_id)} has the subset "
            f"{_format_value(subset)}; the id is in: {subsets}"
        )
    raise ScoreFileError(
        f"{location}: {len(matches)} items have the id {_format_value(item_id)}; select one with "
        f"`subset`: {subsets}"
    )


def _read_rewards(record: Mapping[str, Any], item: Item, location: str) -> list[float]:
    rewards = record["rewards"]
    if not isinstance(rewards, list) or len(rewards) != len(item.responses):
        actual = f"{len(rewards)} rewards" if isinstance(rewards, list) else _format_value(rewards)
        raise ScoreFileError(
            f"{location}: {_describe_item(item)} has {len(item.responses)} responses, so `rewards` "
            f"must be a list of {len(item.responses)} numbers, but is {actual}"
        )
    for index, reward in enumerate(rewards):
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise ScoreFileError(
                f"{location}: reward {index} of {_describe_item(item)} is {_format_value(reward)}; "
                "it must be a number"
            )
        if not _is_finite(reward):
            raise ScoreFileError(
                f"{location}: reward {index} of {_describe_item(item)} is {_format_value(reward)}; "
                "it must be finite. Remove the line, and the result is marked as partial"
            )
    return [float(reward) for reward in rewards]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _describe_item(item: Item) -> str:
    return f"item {item.id!r} of {item.subset!r}"


def _format_value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."
