"""Files of an evaluation: `summary.json` and `summary.md`, next to `scores.jsonl`.

`summary.json` contains neither times nor paths: equal rewards give equal bytes, whatever their
source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_core.benchmarks.base import SubsetScore
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.strict_json import parse_strict
from serve.errors import EvaluationError
from serve.evaluation.result import (
    DIFFICULTY,
    MEAN_OF_SECTIONS,
    METRICS,
    OVERALL,
    Evaluation,
    collect_metrics,
)
from serve.evaluation.scores import SCORES, write_scores
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.summary import describe_tokens
from serve.reports.format import format_percent

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
        **{name: result.extra[name] for name in (DIFFICULTY, METRICS) if name in result.extra},
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
            if name not in (MEAN_OF_SECTIONS, DIFFICULTY, METRICS)
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
    if summary["benchmark"] not in BENCHMARKS:
        raise EvaluationError(
            f"{path} is of the benchmark {summary['benchmark']!r}, which this version of skyreward "
            f"does not have; it has {', '.join(BENCHMARKS)}"
        )
    return dict(summary)


def find_evaluations(folder: Path) -> list[Path]:
    """Return the folder of an evaluation, and those of all evaluations below it, sorted.

    Raises:
        EvaluationError: the folder has no evaluation.
    """
    # `**` does not follow links.
    found = {path.parent for pattern in ("*", "**") for path in folder.glob(f"{pattern}/{SUMMARY}")}
    if not found:
        raise EvaluationError(
            f"{folder} has no {SUMMARY}, and no folder below it has one; give a folder that "
            "`skyreward eval` wrote to, or a folder that contains such folders"
        )
    return sorted(found)


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
    if evaluation.summary:
        lines[-1] += f" {describe_tokens(evaluation.summary)}."
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
