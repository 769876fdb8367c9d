"""Files of an evaluation: `scores.jsonl`, `summary.json`, `summary.md`.

`summary.json` contains neither times nor paths: equal rewards give equal bytes, whatever their
source. `scores.jsonl` has one line of rewards per item. Any tool may have written it, so it is read
strictly: errors name the line, and items without a line make the result partial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Item, ItemKey, ScoredItem, SubsetScore
from rm_core.strict_json import parse_strict
from rm_core.text import shorten
from serve.errors import EvaluationError, ScoreFileError
from serve.evaluation.result import (
    DIFFICULTY,
    MEAN_OF_SECTIONS,
    OVERALL,
    Evaluation,
    collect_metrics,
)
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.inputs.json_rows import build_length_error, parse_line, split_lines
from serve.jobs.inputs.text import open_decompressed
from serve.reports.format import format_percent

SCORES = "scores.jsonl"
SUMMARY = "summary.json"
MODEL_CARD = "summary.md"
REPORT = "report.html"
# Keys that depend on the location of the data, or that have no effect on the rewards.
_LOCATION_KEYS = ("data", "official")
# Has an effect only if a conversation is longer.
_LENGTH = "max_length"


def write_files(evaluation: Evaluation, folder: Path) -> None:
    """Write all files except the report, each atomically."""
    write_scores(folder / SCORES, evaluation.scored_items)
    summary = json.dumps(build_summary(evaluation), ensure_ascii=False, allow_nan=False, indent=2)
    write_atomically(folder / SUMMARY, f"{summary}\n".encode())
    write_atomically(folder / MODEL_CARD, render_model_card(evaluation).encode())


def build_summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    result = evaluation.result
    return {
        "benchmark": evaluation.benchmark.name,
        "model": evaluation.model,
        "num_items": len(evaluation.scored_items),
        "overall": result.overall,
        **{name: result.extra[name] for name in (MEAN_OF_SECTIONS,) if name in result.extra},
        "sections": {name: section.score for name, section in result.sections.items()},
        **{name: result.extra[name] for name in (DIFFICULTY,) if name in result.extra},
        "subsets": {name: subset.score for name, subset in result.subsets.items()},
        "partial": is_partial(evaluation),
        "missing": list(result.missing),
        "failed": [
            {"id": item.id, "subset": item.subset, "code": error.code}
            for item, error in evaluation.failed_items
        ],
        "used": _drop_locations(evaluation),
        "counts": {
            "sections": {n: _get_counts(section) for n, section in result.sections.items()},
            "subsets": {n: _get_counts(subset) for n, subset in result.subsets.items()},
        },
        **{
            name: value
            for name, value in result.extra.items()
            if name not in (MEAN_OF_SECTIONS, DIFFICULTY)
        },
    }


def is_partial(evaluation: Evaluation) -> bool:
    """Return whether the result covers only a part of the benchmark."""
    return bool(evaluation.result.missing or evaluation.failed_items)


def read_summary(path: Path) -> dict[str, Any]:
    """Read a `summary.json`.

    Args:
        path: the file, or the folder of the evaluation.

    Raises:
        EvaluationError: the file is missing, or is not a summary of an evaluation.
    """
    path = path / SUMMARY if path.is_dir() else path
    try:
        summary = parse_strict(read_regular_file(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{path} cannot be read ({error}); give the folder that `skyreward eval` wrote to"
        ) from error
    required = ("benchmark", "model", "num_items", "overall", "sections", "subsets")
    missing = [name for name in required if not isinstance(summary, dict) or name not in summary]
    if missing:
        raise EvaluationError(
            f"{path} has no {', '.join(missing)}, so it is not a summary of an evaluation; give "
            "the folder that `skyreward eval` wrote to"
        )
    return dict(summary)


def render_model_card(evaluation: Evaluation) -> str:
    """Return the results as Markdown tables."""
    rows = collect_metrics(evaluation.result)
    if MEAN_OF_SECTIONS in rows:
        rows = {
            "overall, of all items": rows.pop(OVERALL),
            "mean of the sections": rows.pop(MEAN_OF_SECTIONS),
            **rows,
        }
    lines = [
        f"## {evaluation.benchmark.title}: {_escape_markdown(evaluation.model)}",
        "",
        "| | accuracy, % |",
        "|---|--:|",
        *(
            f"| {_escape_markdown(name)} | {format_percent(value, 1, unit='', nothing='-')} |"
            for name, value in rows.items()
        ),
        "",
        f"{len(evaluation.scored_items):,} items, scored with `skyreward`.",
    ]
    if is_partial(evaluation):
        failed = (
            [f"{len(evaluation.failed_items):,} items could not be scored"]
            if evaluation.failed_items
            else []
        )
        missing = "; ".join([*failed, *evaluation.result.missing])
        lines += ["", f"**Partial result.** Missing: {missing}."]
    if evaluation.comparisons:
        lines += ["", "| source | metric | published, % | here, % | note |"]
        lines += ["|---|---|--:|--:|---|"]
        lines += [
            f"| {_escape_markdown(one.source)} | {_escape_markdown(one.metric)} | "
            f"{_format_percent(one.published)} | {_format_percent(one.ours)} | "
            f"{_escape_markdown(one.note)} |"
            for one in evaluation.comparisons
        ]
    used = "; ".join(f"{name}: {value}" for name, value in evaluation.provenance.items())
    return "\n".join([*lines, "", _escape_markdown(f"Used: {used}"), ""])


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
                    f"{location}: {item.label} already has rewards in line "
                    f"{lines[item.key]}; remove one of the two lines"
                )
            rewards[item.key] = _read_rewards(record, item, location)
            lines[item.key] = number
    if not rewards:
        raise ScoreFileError(f"{path} has {number} lines but no rewards; write one line per item")
    return rewards


def _format_percent(value: float | None) -> str:
    return format_percent(value, 1, unit="", nothing="-")


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _get_counts(subset: SubsetScore) -> dict[str, float | int | None]:
    return {
        "num_items": subset.num_items,
        "num_expected": subset.num_expected,
        "num_correct": subset.num_correct,
    }


def _drop_locations(evaluation: Evaluation) -> Mapping[str, Any]:
    used = {
        name: value for name, value in evaluation.provenance.items() if name not in _LOCATION_KEYS
    }
    if not used.get("num_truncated") and not evaluation.failed_items:
        used.pop(_LENGTH, None)
    return used


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
            f"{location}: {item.label} has {len(item.responses)} responses, so `rewards` "
            f"must be a list of {len(item.responses)} numbers, but is {actual}"
        )
    for index, reward in enumerate(rewards):
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise ScoreFileError(
                f"{location}: reward {index} of {item.label} is {_format_value(reward)}; "
                "it must be a number"
            )
        if not _is_finite(reward):
            raise ScoreFileError(
                f"{location}: reward {index} of {item.label} is {_format_value(reward)}; "
                "it must be finite. Remove the line, and the result is marked as partial"
            )
    return [float(reward) for reward in rewards]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _format_value(value: object) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str))
