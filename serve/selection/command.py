"""Run `skyreward select`: read scored rows, choose, and write the output and its report."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from rm_core.text import format_keys, shorten
from serve.errors import JobInputError
from serve.jobs.columns import Columns
from serve.jobs.hub import Push, open_repository
from serve.jobs.inputs.folders import SELECTION_SUFFIX
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.schema_inference import TypeInference, infer_fields
from serve.jobs.inputs.source import FileSource, open_source
from serve.jobs.output import Output
from serve.jobs.storage import strip_secrets
from serve.jobs.summary import Line, print_lines
from serve.jobs.writers import is_tabular, open_plain_writer
from serve.selection.answer_store import AnswerStore, SelectedRow
from serve.selection.card import build_selection_section
from serve.selection.choices import Answer, Choice, choose_best, choose_pairs, explain_drop
from serve.selection.scored_rows import UnusedRow, read_scored_row

_NOTIFY_EVERY_ROWS = 250_000
_MAX_EXAMPLE = 300
_OUTPUT_COLUMNS = {
    *("prompt", "completion", "chosen", "rejected", "tools"),
    *("reward", "chosen_reward", "rejected_reward", "margin"),
}


@dataclass(slots=True)
class _Reading:
    """What was read.

    Attributes:
        num_rows: number of rows.
        unused: number of rows that are not used, by the reason.
        examples: the first such row, by the reason; rows count from 0.
        num_unscored: number of answers without a reward in rows that are used.
        num_repeated: number of answers that repeat an earlier one to the same prompt.
        is_text: whether prompts and answers of all rows are text.
        has_tools: whether a row has function definitions.
    """

    num_rows: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    num_unscored: int = 0
    num_repeated: int = 0
    is_text: bool = True
    has_tools: bool = False

    @property
    def num_used(self) -> int:
        return self.num_rows - self.unused.total()


@dataclass(slots=True)
class _Prompts:
    """What was chosen: numbers of prompts, and of ties for a place that only one answer has."""

    num_prompts: int = 0
    num_ties: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def run_selection(
    input: str,
    output_name: str | Path,
    choice: Choice,
    *,
    notify: Callable[[str], None],
    split: str | None,
    columns: dict[str, Any],
    keep_columns: Sequence[str] = (),
    push: Push | None = None,
) -> None:
    """Select answers of a scored input, and write them with a report next to the output.

    Args:
        input: INPUT of the command line.
        output_name: path or address of the file to write.
        choice: what to choose.
        notify: prints a line for the user.
        split: split of the input.
        columns: fields of `Columns`, as the job had them.
        keep_columns: columns of the chosen answer's row to copy.
        push: where to upload the output; None for nowhere.

    Raises:
        JobInputError: the input has no rewards, mixes kinds of rows, lacks a column to keep, or
            gives no row.
        JobOutputError: the output's format cannot be written or cannot hold the rows, or the
            output is a file of the input.
        HubError: the output cannot be pushed.
    """
    output = Output.parse(output_name)
    is_table = is_tabular(output)
    if reserved := sorted(_OUTPUT_COLUMNS.intersection(keep_columns)):
        raise JobInputError(
            f"{format_keys(reserved)} cannot be kept: the output has other values under that name; "
            "rename the column in the input"
        )
    source = open_source(input, split=split, exclude=output.location)
    output.require_writable(source)
    repository = open_repository(push, output) if push else None
    gc.freeze()  # the collector need not walk through the imported modules again and again
    with output.location.open_work_folder() as folder, AnswerStore(folder) as store:
        reading = _read(source, store, Columns(**columns), keep_columns, notify)
        prompts = _choose(store, choice)
        (num_selected,) = store.query("SELECT COUNT(*) FROM chosen")
        if not num_selected:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in prompts.dropped.items())
            raise JobInputError(
                f"no prompt gives a row ({reasons}); nothing was written. Lower --min-margin, "
                "raise --max-length-ratio, or score several answers to each prompt"
            )
        report = _build_report(strip_secrets(input), choice, store, reading, prompts)
        schema = _infer_schema(store, reading) if is_table else None
        report_file = output.location.with_suffix(SELECTION_SUFFIX)
        report_file.remove()  # a report always belongs to the output next to it
        with (
            output.location.open_atomic(folder) as file,
            open_plain_writer(output, file, schema) as writer,
        ):
            for number, (record, size) in enumerate(_build_records(store, reading)):
                writer.write(Row(number, size, record, None, 0), {})
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        report_file.write(text.encode())
    for problem, example in reading.examples.items():
        notify(f"{problem}, first seen in {example}")
    print_lines(_format_lines(report))
    if push and repository:
        section = build_selection_section(
            report, source, repository.path, push.command, keep_columns, reading.has_tools
        )
        notify(repository.push(section))


def _read(
    source: FileSource,
    store: AnswerStore,
    columns: Columns,
    keep_columns: Sequence[str],
    notify: Callable[[str], None],
) -> _Reading:
    if source.schema is not None:
        _require_columns(keep_columns, set(source.schema.names), source.name)
    reading = _Reading()
    seen: set[str] = set()
    first: tuple[str, int] | None = None
    for row in source.iter_rows():
        reading.num_rows += 1
        if not reading.num_rows % _NOTIFY_EVERY_ROWS:
            notify(f"{reading.num_rows:,} rows read")
        scored = read_scored_row(row, columns)
        if isinstance(scored, UnusedRow):
            reading.unused[scored.problem] += 1
            example = f"row {row.number}: {shorten(scored.message, _MAX_EXAMPLE)}"
            reading.examples.setdefault(scored.problem, example)
            continue
        first = first or (scored.kind, row.number)
        if scored.kind != first[0]:
            raise JobInputError(
                f"row {row.number} is a {scored.kind} and row {first[1]} is a {first[0]} (counted "
                "from 0); a selection takes rows of one kind: split the input by kind"
            )
        reading.num_unscored += scored.num_unscored
        reading.is_text &= scored.is_text
        reading.has_tools |= scored.tools is not None
        seen.update(name for name in keep_columns if name in row.record)
        store.add(scored, {name: row.record.get(name) for name in keep_columns})
    if not reading.num_used:
        problems = "; ".join(f"{n}: {text}" for n, text in reading.examples.items())
        raise JobInputError(
            f"{source.name} has no row with a reward ({problems or 'it has no rows'}); give the "
            "output of `skyreward score`, with the column options that the job had"
        )
    _require_columns(keep_columns, seen, source.name)
    reading.num_repeated = store.finish_reading()
    return reading


def _require_columns(names: Sequence[str], found: Set[str], source: str) -> None:
    if missing := [name for name in names if name not in found]:
        raise JobInputError(
            f"{source} has no column {format_keys(missing)}; give --keep-column a column of INPUT"
        )


def _choose(store: AnswerStore, choice: Choice) -> _Prompts:
    prompts = _Prompts()
    if choice.mode == "top":
        assert choice.top is not None, "the mode has a number"
        (prompts.num_prompts,) = store.query("SELECT COUNT(DISTINCT prompt) FROM answers")
        prompts.num_ties = store.select_top(choice.top)
    else:
        store.select(_iter_choices(store, choice, prompts))
    return prompts


def _iter_choices(
    store: AnswerStore, choice: Choice, prompts: _Prompts
) -> Iterator[tuple[Answer, Answer | None]]:
    for answers in store.iter_groups():
        prompts.num_prompts += 1
        found = False
        if choice.mode == "best-of-n":
            if best := choose_best(answers, choice.max_length_ratio):
                found = True
                yield best, None
        else:
            for pair in choose_pairs(answers, choice):
                found = True
                yield pair
        if not found:
            prompts.dropped[explain_drop(answers, choice)] += 1
            continue
        best_reward = max(answer.reward for answer in answers)
        prompts.num_ties += sum(answer.reward == best_reward for answer in answers) > 1


def _build_records(store: AnswerStore, reading: _Reading) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the rows of the output, each with its approximate size in bytes."""
    for row in store.iter_selected():
        yield _build_record(row, reading), row.size


def _build_record(row: SelectedRow, reading: _Reading) -> dict[str, Any]:
    def convert(messages: list[dict[str, Any]]) -> Any:
        return messages[0]["content"] if reading.is_text else messages

    record: dict[str, Any] = {"prompt": convert(row.prompt)}
    if row.rejected is None:
        record |= {"completion": convert(row.chosen)}
    else:
        record |= {"chosen": convert(row.chosen), "rejected": convert(row.rejected)}
    if reading.has_tools:
        record["tools"] = row.tools
    if row.rejected_reward is None:
        record["reward"] = row.chosen_reward
    else:
        record |= {
            "chosen_reward": row.chosen_reward,
            "rejected_reward": row.rejected_reward,
            "margin": row.chosen_reward - row.rejected_reward,
        }
    return {**record, **row.kept}


def _infer_schema(store: AnswerStore, reading: _Reading) -> pa.Schema:
    inference = TypeInference()
    for record, _ in _build_records(store, reading):
        inference.add(record)
    return pa.schema(infer_fields(inference.fields or {}))


def _build_report(
    input: str, choice: Choice, store: AnswerStore, reading: _Reading, prompts: _Prompts
) -> dict[str, Any]:
    """Return the report as JSON data; equal inputs and options give an equal report."""
    (num_selected,) = store.query("SELECT COUNT(*) FROM chosen")
    report: dict[str, Any] = {
        "input": input,
        "choice": _describe(choice),
        "rows": {
            "read": reading.num_rows,
            "used": reading.num_used,
            **dict(sorted(reading.unused.items())),
        },
        "answers": {
            "different": store.num_answers,
            "repeated": reading.num_repeated,
            "without_reward": reading.num_unscored,
        },
        "prompts": {
            "read": prompts.num_prompts,
            "dropped": dict(sorted(prompts.dropped.items())),
            "ties": prompts.num_ties,
        },
        "selected": {"rows": num_selected},
        "examples": dict(sorted(reading.examples.items())),
    }
    selected = report["selected"]
    chosen = "FROM chosen JOIN answers c ON c.number = chosen"
    if choice.mode != "pairs":
        selected["reward"] = _summarize(store, "c.reward", chosen, num_selected)
        selected["length"] = _summarize(store, "c.length", chosen, num_selected)
        return report
    pairs = f"{chosen} JOIN answers r ON r.number = rejected"
    for name, value in {
        "margin": "c.reward - r.reward",
        "chosen_reward": "c.reward",
        "rejected_reward": "r.reward",
        "chosen_length": "c.length",
        "rejected_length": "r.length",
    }.items():
        selected[name] = _summarize(store, value, pairs, num_selected)
    (longer,) = store.query(f"SELECT AVG(c.length > r.length) {pairs}")
    selected["chosen_is_longer"] = longer
    return report


def _describe(choice: Choice) -> dict[str, Any]:
    options: dict[str, Any] = {"mode": choice.mode}
    if choice.mode == "top":
        top = choice.top
        options["top"] = f"{float(100 * top):g}%" if isinstance(top, Fraction) else top
    if choice.mode == "pairs":
        options |= {"against": choice.against, "min_margin": choice.min_margin}
    if choice.mode == "pairs" and choice.against == "random":
        options["seed"] = choice.seed
    if choice.max_length_ratio is not None:
        options["max_length_ratio"] = choice.max_length_ratio
    return options


def _summarize(store: AnswerStore, value: str, table: str, count: int) -> dict[str, float]:
    least, mean, most = store.query(f"SELECT MIN({value}), AVG({value}), MAX({value}) {table}")
    # Of an even number of values, the lower one of the two in the middle.
    (median,) = store.query(
        f"SELECT {value} {table} ORDER BY {value} LIMIT 1 OFFSET {(count - 1) // 2}"
    )
    return {"min": least, "median": median, "mean": mean, "max": most}


def _format_lines(report: dict[str, Any]) -> Iterator[Line]:
    for section in ("rows", "answers", "prompts"):
        for name, count in report[section].items():
            if isinstance(count, int):
                yield f"{section} {name.replace('_', ' ')}", f"{count:,}"
    for reason, count in report["prompts"]["dropped"].items():
        yield f"  dropped: {reason.replace('_', ' ')}", f"{count:,}"
    for name, value in report["selected"].items():
        if isinstance(value, dict):
            yield f"selected {name.replace('_', ' ')}, mean", f"{value['mean']:.4g}"
        elif isinstance(value, float):
            yield f"selected {name.replace('_', ' ')}", f"{100 * value:.1f}%"
        else:
            yield f"selected {name}", f"{value:,}"
