"""What an evaluation leaves in its folder: `summary.json`, `scores.jsonl`, `summary.md`.

`summary.json` has no time and no place in it: equal rewards give equal bytes, whatever gave them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_core.benchmarks.base import SubsetScore
from serve.errors import EvaluationError
from serve.evaluation.metric_names import DIFFICULTY, MEAN_OF_SECTIONS, OVERALL, collect_metrics
from serve.evaluation.result import Evaluation
from serve.evaluation.score_files import SCORES, write_scores
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.inputs.strict_json import parse_strict

SUMMARY = "summary.json"
MODEL_CARD = "summary.md"
REPORT = "report.html"
# Where the data lies, and what decides nothing while nothing is longer.
_LOCATION_KEYS = ("data", "official")
_LENGTH = "max_length"


def write_files(evaluation: Evaluation, folder: Path) -> None:
    """Write all but the report; each file is there whole or not at all."""
    write_scores(folder / SCORES, evaluation.scored_items)
    summary = json.dumps(build_summary(evaluation), ensure_ascii=False, allow_nan=False, indent=2)
    write_atomically(folder / SUMMARY, f"{summary}\n".encode())
    write_atomically(folder / MODEL_CARD, render_model_card(evaluation).encode())


def build_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The content of `summary.json`."""
    figures = evaluation.result
    return {
        "benchmark": evaluation.benchmark.name,
        "model": evaluation.model,
        "num_items": len(evaluation.scored_items),
        "overall": figures.overall,
        **{name: figures.extra[name] for name in (MEAN_OF_SECTIONS,) if name in figures.extra},
        "sections": {name: part.score for name, part in figures.sections.items()},
        **{name: figures.extra[name] for name in (DIFFICULTY,) if name in figures.extra},
        "subsets": {name: part.score for name, part in figures.subsets.items()},
        "partial": is_partial(evaluation),
        "missing": list(figures.missing),
        "failed": [
            {"id": item.id, "subset": item.subset, "code": error.code}
            for item, error in evaluation.failed_items
        ],
        "used": _drop_locations(evaluation),
        "counts": {
            "sections": {name: _counts(part) for name, part in figures.sections.items()},
            "subsets": {name: _counts(part) for name, part in figures.subsets.items()},
        },
        **{
            name: value
            for name, value in figures.extra.items()
            if name not in (MEAN_OF_SECTIONS, DIFFICULTY)
        },
    }


def is_partial(evaluation: Evaluation) -> bool:
    """Whether the figures are of a part of the benchmark."""
    return bool(evaluation.result.missing or evaluation.failed_items)


def read_summary(path: Path) -> dict[str, Any]:
    """A `summary.json`.

    Args:
        path: of the file, or of the folder of the evaluation.

    Raises:
        EvaluationError: it is not there, or is none.
    """
    path = path / SUMMARY if path.is_dir() else path
    try:
        summary = parse_strict(read_regular_file(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{path} cannot be read ({error}); give the folder that `skyreward eval` wrote to"
        ) from error
    wanted = ("benchmark", "model", "num_items", "overall", "sections", "subsets")
    lacking = [name for name in wanted if not isinstance(summary, dict) or name not in summary]
    if lacking:
        raise EvaluationError(
            f"{path} has no {', '.join(lacking)}, so it is no summary of an evaluation; give the "
            "folder that `skyreward eval` wrote to"
        )
    return dict(summary)


def render_model_card(evaluation: Evaluation) -> str:
    """The figures as a table of Markdown."""
    figures = evaluation.result
    rows = collect_metrics(figures)
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
            f"| {_escape_markdown(name)} | {_format_percent(value)} |"
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
        lines += ["", f"**Partial result.** Missing: {'; '.join([*failed, *figures.missing])}."]
    if evaluation.comparisons:
        lines += ["", "| published | figure | there, % | here, % | note |", "|---|---|--:|--:|---|"]
        lines += [
            f"| {_escape_markdown(one.source)} | {_escape_markdown(one.metric)} | {_format_percent(one.published)} | "
            f"{_format_percent(one.ours)} | {_escape_markdown(one.note)} |"
            for one in evaluation.comparisons
        ]
    used = "; ".join(f"{name}: {value}" for name, value in evaluation.provenance.items())
    return "\n".join([*lines, "", _escape_markdown(f"Used: {used}"), ""])


def lacks(evaluation: Evaluation) -> list[str]:
    """What a partial result is without, a phrase each."""
    failed = f"{len(evaluation.failed_items):,} items could not be scored"
    return [failed] * bool(evaluation.failed_items) + list(evaluation.result.missing)


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _counts(subset: SubsetScore) -> dict[str, float | int | None]:
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
