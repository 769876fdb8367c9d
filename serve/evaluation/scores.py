"""`scores.jsonl`: one line of numbers for each item.

Any tool may have written such a file, so it is read strictly: errors name the line, and items
without a line make the result partial. A line has `rewards`, or what another kind of model gives:
`log_odds` of a judge, or `step_rewards` of the responses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Benchmark, Item, ItemKey, ScoredItem
from rm_core.text import format_names, shorten
from serve.errors import ScoreFileError
from serve.jobs.atomic_io import write_atomically
from serve.jobs.inputs.json_rows import build_length_error, parse_line, split_lines
from serve.jobs.inputs.text import open_decompressed
from serve.jobs.storage import LocalFile

SCORES = "scores.jsonl"
_NUMBERS = ("rewards", "log_odds", "step_rewards")
_ORDERS = (1, 2)


def write_scores(path: Path, scored_items: Iterable[ScoredItem]) -> None:
    """Write the numbers of items, in the order of the items."""
    lines = (
        json.dumps(
            {
                "id": one.item.id,
                "subset": one.item.subset,
                # An item without pairs has no verdicts, but a judge has read it.
                **(
                    {name: value for name in _NUMBERS if (value := getattr(one, name))}
                    or {"log_odds": []}
                ),
            },
            ensure_ascii=False,
            allow_nan=False,
        )
        for one in scored_items
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_scores(
    path: Path, items: Sequence[Item], benchmark: Benchmark
) -> dict[ItemKey, ScoredItem]:
    """Return the items that have a line, with their numbers.

    Args:
        path: path of the file, which may be compressed as `.gz`.
        items: items of the benchmark.
        benchmark: benchmark of the items.

    Raises:
        ScoreFileError: a line is not a JSON object with `id` and the numbers of one kind of model,
            matches zero or several items, or repeats an item; a number is not finite; there are too
            many or too few numbers; the file has numbers of several kinds of models, or none.
    """
    items_by_id: dict[str, list[Item]] = {}
    for item in items:
        items_by_id.setdefault(item.id, []).append(item)
    scored: dict[ItemKey, ScoredItem] = {}
    lines: dict[ItemKey, int] = {}
    names: dict[tuple[str, ...], int] = {}
    number = 0
    with open_decompressed(LocalFile(path)) as file:
        for number, (line, size) in enumerate(split_lines(file), 1):
            if line.isspace():
                continue
            location = f"{path}, line {number}"
            record = _parse_record(line, size, location)
            item = _find_item(record, items_by_id, location)
            if item.key in scored:
                raise ScoreFileError(
                    f"{location}: {item.label} already has rewards in line "
                    f"{lines[item.key]}; remove one of the two lines"
                )
            scored[item.key] = _LineReader(record, item, location).read(benchmark)
            lines[item.key] = number
            names.setdefault(_list_names(record), number)
    if not scored:
        told = f"{number} lines but no rewards" if number else "no line"
        raise ScoreFileError(
            f"{path} has {told}; write one line for each item. An evaluation in which no item "
            "could be scored writes none"
        )
    if len(names) > 1:
        (first, first_line), (second, second_line) = list(names.items())[:2]
        raise ScoreFileError(
            f"{path}: line {first_line} has {format_names(first)}, and line {second_line} has "
            f"{format_names(second)}; give the numbers of one model"
        )
    return scored


class _LineReader:
    """Reads the numbers of an item from its line.

    Raises:
        ScoreFileError: a number is missing or not finite, or there are too many.
    """

    def __init__(self, record: Mapping[str, Any], item: Item, location: str) -> None:
        self._record = record
        self._item = item
        self._location = location

    def read(self, benchmark: Benchmark) -> ScoredItem:
        """Return the item with its numbers."""
        if "log_odds" in self._record:
            return self._read_log_odds(benchmark)
        if "step_rewards" in self._record:
            return self._read_step_rewards(benchmark)
        return ScoredItem(self._item, self._read_rewards(benchmark))

    def _read_rewards(self, benchmark: Benchmark) -> list[float]:
        rewards, item = self._record["rewards"], self._item
        unit = "steps" if benchmark.kinds == ("step",) else "responses"
        num_rewards = len(item.responses)
        may_be_fewer = benchmark.official_protocol.step_format is not None
        if may_be_fewer and isinstance(rewards, list) and 0 < len(rewards) < num_rewards:
            num_rewards = len(rewards)
        self._require_list(
            rewards,
            num_rewards,
            f"{item.label} has {len(item.responses)} {unit}, so `rewards` must be a list of "
            f"{num_rewards} numbers",
            "rewards",
        )
        return [self._read_number(value, f"reward {i}") for i, value in enumerate(rewards)]

    def _read_log_odds(self, benchmark: Benchmark) -> ScoredItem:
        log_odds, item = self._record["log_odds"], self._item
        if "judge" not in benchmark.kinds:
            raise ScoreFileError(
                f"{self._location}: `log_odds` are those of a judge, and {benchmark.name} is not "
                "run with judges; give `rewards`"
            )
        self._require_list(
            log_odds,
            len(item.pairs),
            f"{item.label} has {len(item.pairs)} pairs of responses, so `log_odds` must be a list "
            f"of {len(item.pairs)} lists",
            "lists",
        )
        for i, orders in enumerate(log_odds):
            if not isinstance(orders, list) or len(orders) not in _ORDERS:
                raise ScoreFileError(
                    f"{self._location}: the log-odds of pair {i} of {item.label} are "
                    f"{_format_value(orders)}; they must be a list of one or two numbers, the "
                    "second with the responses swapped"
                )
        return ScoredItem(item, log_odds=self._read_lists(log_odds, "log-odds", "pair"))

    def _read_step_rewards(self, benchmark: Benchmark) -> ScoredItem:
        step_rewards, item = self._record["step_rewards"], self._item
        if benchmark.kinds == ("step",):
            raise ScoreFileError(
                f"{self._location}: `step_rewards` are those of several responses, and an item of "
                f"{benchmark.name} is one solution; give the rewards of its steps as `rewards`"
            )
        self._require_list(
            step_rewards,
            len(item.responses),
            f"{item.label} has {len(item.responses)} responses, so `step_rewards` must be a list "
            f"of {len(item.responses)} lists",
            "lists",
        )
        for i, rewards in enumerate(step_rewards):
            if not isinstance(rewards, list) or not rewards:
                raise ScoreFileError(
                    f"{self._location}: the step rewards of response {i} of {item.label} are "
                    f"{_format_value(rewards)}; they must be a list of at least one number"
                )
        lists = self._read_lists(step_rewards, "step reward", "response")
        has_rewards = self._record.get("rewards") is not None
        rewards = self._read_rewards(benchmark) if has_rewards else [one[-1] for one in lists]
        return ScoredItem(item, rewards, step_rewards=lists)

    def _read_lists(self, lists: Sequence[Any], name: str, unit: str) -> list[list[float]]:
        return [
            [
                self._read_number(value, f"{name} {j} of {unit} {i}")
                for j, value in enumerate(numbers)
            ]
            for i, numbers in enumerate(lists)
        ]

    def _require_list(self, value: object, length: int, rule: str, unit: str) -> None:
        if not isinstance(value, list) or len(value) != length:
            is_list = isinstance(value, list)
            actual = f"{len(value)} {unit}" if is_list else _format_value(value)  # type: ignore[arg-type]
            raise ScoreFileError(f"{self._location}: {rule}, but is {actual}")

    def _read_number(self, value: Any, name: str) -> float:
        problem = ""
        if isinstance(value, bool) or not isinstance(value, int | float):
            problem = "must be a number"
        elif not _is_finite(value):
            problem = "must be finite. Remove the line, and the result is marked as partial"
        if problem:
            raise ScoreFileError(
                f"{self._location}: {name} of {self._item.label} is {_format_value(value)}; "
                f"it {problem}"
            )
        return float(value)


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
    record = {name: value for name, value in record.items() if value is not None}
    keys = ", ".join(f"`{key}`" for key in record) or "none"
    if "id" not in record:
        raise ScoreFileError(f"{location}: `id` is missing; the line has the keys: {keys}")
    if not _list_names(record):
        raise ScoreFileError(
            f"{location}: `rewards` is missing; the line has the keys: {keys}. A judge gives "
            "`log_odds`, a step model may give `step_rewards`"
        )
    if {"rewards", "log_odds"} <= record.keys():
        raise ScoreFileError(
            f"{location}: the line has `rewards` and `log_odds`; give the numbers of one model"
        )
    return record


def _list_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in _NUMBERS if name in record)


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


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _format_value(value: object) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str))
