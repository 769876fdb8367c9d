"""`scores.jsonl`: a line of rewards for each item, read strictly.

Any tool may have made the file. What is wrong with a line is told with its number; items without a
line make the result partial.
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
from serve.jobs.inputs.io import open_decompressed
from serve.jobs.inputs.jsonl import parse_line, row_too_long_error, split_lines

SCORES = "scores.jsonl"
_MAX_VALUE_CHARS = 60


def write_scores(path: Path, scored_items: Iterable[ScoredItem]) -> None:
    """Write the rewards of items, in their order."""
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
    """The rewards of those items that have a line.

    Args:
        path: of the file, also compressed as `.gz`.
        items: that the lines are of.

    Raises:
        ScoresError: a line is no JSON object with `id` and `rewards`, is of no item or of several,
            or its item had one; a reward is no finite number, or their number is wrong.
    """
    items_by_id: dict[str, list[Item]] = {}
    for item in items:
        items_by_id.setdefault(item.id, []).append(item)
    rewards: dict[ItemKey, list[float]] = {}
    lines: dict[ItemKey, int] = {}
    number = 0
    with open_decompressed(path, 0) as file:
        for number, (line, size) in enumerate(split_lines(file), 1):
            if line.isspace():
                continue
            place = f"{path}, line {number}"
            record = _parse_record(line, size, place)
            item = _find_item(record, items_by_id, place)
            if item.key in rewards:
                raise ScoreFileError(
                    f"{place}: {_describe_item(item)} had rewards in line {lines[item.key]} already; leave "
                    "one of the two lines out"
                )
            rewards[item.key] = _read_rewards(record, item, place)
            lines[item.key] = number
    if not rewards:
        raise ScoreFileError(f"{path} has {number} lines and no rewards; give a line for each item")
    return rewards


def _parse_record(line: bytes, size: int, location: str) -> Mapping[str, Any]:
    # NaN is read, for a message that names the item.
    parsed = (
        row_too_long_error("line", line, size)
        if size > len(line)
        else parse_line(line, finite=False)
    )
    record = parsed[0]
    if isinstance(record, ScoreError):
        raise ScoreFileError(f"{location}: {record.message}")
    if not isinstance(record, Mapping):
        raise ScoreFileError(
            f"{location}: it must be an object with `id`, `subset` and `rewards`, and is "
            f"{_format_value(record)}"
        )
    for name in ("id", "rewards"):
        if record.get(name) is None:
            there = ", ".join(f"`{key}`" for key in record) or "nothing"
            raise ScoreFileError(f"{location}: there is no `{name}`; there is {there}")
    return record


def _find_item(
    record: Mapping[str, Any], items_by_id: Mapping[str, list[Item]], location: str
) -> Item:
    given, subset = record["id"], record.get("subset")
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ScoreFileError(
            f"{location}: `id` must be text or a whole number, and is {_format_value(given)}"
        )
    with_id = items_by_id.get(str(given), [])
    found = [item for item in with_id if subset is None or item.subset == subset]
    if len(found) == 1:
        return found[0]
    if not with_id:
        raise ScoreFileError(f"{location}: no item of the data has the id {_format_value(given)}")
    subsets = ", ".join(repr(item.subset) for item in with_id[:8])
    if not found:
        raise ScoreFileError(
            f"{location}: no item with the id {_format_value(given)} has the subset {_format_value(subset)}; it has "
            f"{subsets}"
        )
    raise ScoreFileError(
        f"{location}: {len(found)} items have the id {_format_value(given)}; say by `subset` which one it "
        f"is: {subsets}"
    )


def _read_rewards(record: Mapping[str, Any], item: Item, location: str) -> list[float]:
    rewards = record["rewards"]
    if not isinstance(rewards, list) or len(rewards) != len(item.responses):
        came = f"{len(rewards)} rewards" if isinstance(rewards, list) else _format_value(rewards)
        raise ScoreFileError(
            f"{location}: {_describe_item(item)} has {len(item.responses)} responses, so `rewards` must be a "
            f"list of {len(item.responses)} numbers, and is {came}"
        )
    for index, reward in enumerate(rewards):
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise ScoreFileError(
                f"{location}: reward {index} of {_describe_item(item)} is {_format_value(reward)}; it must be a "
                "number"
            )
        if not _is_finite(reward):
            raise ScoreFileError(
                f"{location}: reward {index} of {_describe_item(item)} is {_format_value(reward)}; NaN and infinite "
                "numbers order nothing: leave the line out, and the result is marked as partial"
            )
    return [float(reward) for reward in rewards]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def _describe_item(item: Item) -> str:
    return f"item {item.id!r} of {item.subset!r}"


def _format_value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."
