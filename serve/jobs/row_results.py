"""Result columns of a row, and the names under which a job writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rm_core import Reward, ScoreError
from serve.errors import JobInputError
from serve.jobs.record_schema import ParsedRecord, RecordKind

RESULT_COLUMNS: Mapping[RecordKind, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
}

RESULT_NAMES = (
    *(name for names in RESULT_COLUMNS.values() for name in names),
    "error",
    "truncated",
    "warnings",
)
"""Names of result columns, if the input has no columns of these names."""
UNREAD_COLUMN = "line"
"""Column for the text of a row that cannot be read."""
RESULT_PREFIX = "skyreward_"
"""Prefix of a result column if the input has a column of the result's name."""
RESERVED_COLUMNS = frozenset(
    [
        *RESULT_NAMES,
        UNREAD_COLUMN,
        *(f"{RESULT_PREFIX}{name}" for name in (*RESULT_NAMES, UNREAD_COLUMN)),
    ]
)
"""Names of input columns that affect the names of result columns."""

_CODES = frozenset(
    (
        "conversation_too_long",
        "device_memory",
        "foreign_template",
        "invalid_conversation",
        "invalid_json",
        "lost_replicas",
        "non_finite_reward",
        "scoring_failed",
        "template_error",
    )
)


def is_job_error(value: object) -> bool:
    """Return whether a job wrote a value of a column `error`: an object with a known code."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"code", "message"}
        and isinstance(value["message"], str)
        and isinstance(value["code"], str)
        and value["code"] in _CODES
    )


@dataclass(frozen=True, slots=True)
class ResultNames:
    """Names of result columns, for all rows of a job.

    Attributes:
        renames: other names of results (and of `UNREAD_COLUMN`), because the input has columns of
            the results' names.
        replaced_columns: columns of the input that an earlier run wrote; they are dropped.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    replaced_columns: frozenset[str] = frozenset()

    def __getitem__(self, result: str) -> str:
        return self.renames.get(result, result)

    @property
    def result_columns(self) -> frozenset[str]:
        """Names of the result columns that this job writes."""
        return frozenset(self[name] for name in RESULT_NAMES)

    def format_notices(self) -> Iterator[str]:
        """Yield notices for the user about replaced and renamed columns."""
        if self.replaced_columns:
            names = ", ".join(f"`{name}`" for name in sorted(self.replaced_columns))
            yield f"results of an earlier run are replaced: {names}"
        if self.renames:
            pairs = ", ".join(f"`{name}` in `{other}`" for name, other in self.renames.items())
            yield (
                "the input has columns that are named like results, and they are kept; this job "
                f"writes its results under other names: {pairs}. If the columns are results of an "
                "earlier run, --replace-results replaces them"
            )


DEFAULT_RESULT_NAMES = ResultNames()


def choose_result_names(own: Set[str], earlier: Set[str], *, replace: bool = False) -> ResultNames:
    """Choose the names of result columns.

    Args:
        own: input columns in `RESERVED_COLUMNS` that are not known to be written by an earlier run.
        earlier: input columns that an earlier run wrote.
        replace: whether the user declared all these columns as results of an earlier run. If there
            is `skyreward_margin`, then this column is the result, and `margin` is not.

    Raises:
        JobInputError: a result has no free name.
    """
    if replace:
        named = {
            name: f"{RESULT_PREFIX}{name}" if f"{RESULT_PREFIX}{name}" in own | earlier else name
            for name in RESULT_NAMES
        }
        earlier = (own | earlier) & set(named.values())
        own = own - earlier
    renamed = {
        name: f"{RESULT_PREFIX}{name}"
        for name in sorted((*RESULT_NAMES, UNREAD_COLUMN))
        if name in own
    }
    for name, other in renamed.items():
        if other in own:
            raise JobInputError(
                f"the input has columns `{name}` and `{other}`, so no name is left for a result; "
                f"rename `{other}`, or give --replace-results if it is a result of an earlier run"
            )
    return ResultNames(renamed, frozenset(earlier - own))


class RowOutput(NamedTuple):
    """Results of one row for the output.

    Attributes:
        kind: kind of the record; None if unknown.
        columns: result columns: rewards, `error`, `truncated`, `warnings`.
    """

    kind: RecordKind | None
    columns: Mapping[str, Any]


def build_row_output(
    record: ParsedRecord | ScoreError, results: Sequence[Reward | ScoreError]
) -> RowOutput:
    """Build the result columns of one row.

    Args:
        record: the parsed record; an error for a row without a known shape.
        results: results of `record.conversations`, in order, including those that are errors.
    """
    if isinstance(record, ScoreError):
        return RowOutput(None, _error_column(record))
    if record.error:
        return RowOutput(record.kind, _error_column(record.error))
    error = find_first_error(record.kind, results)
    rewards = [r for r in results if isinstance(r, Reward)]
    columns: dict[str, Any] = {}
    if record.kind == "group":
        columns["rewards"] = [r.reward if isinstance(r, Reward) else None for r in results]
    elif error is None and record.kind == "pair":
        chosen, rejected = (r.reward for r in rewards)
        columns |= {"chosen_reward": chosen, "rejected_reward": rejected}
        columns["margin"] = chosen - rejected
    elif error is None:
        columns["reward"] = rewards[0].reward
    if any(r.truncated for r in rewards):
        columns["truncated"] = True
    if warnings := collect_warnings(record.warnings, results):
        columns["warnings"] = warnings
    return RowOutput(record.kind, columns | (_error_column(error) if error else {}))


def find_first_error(
    kind: RecordKind | None, results: Sequence[Reward | ScoreError]
) -> ScoreError | None:
    """Return the first error of a row, with its position in the record in the message.

    Args:
        kind: kind of the record.
        results: results of the record's conversations, in order.
    """
    for index, result in enumerate(results):
        if isinstance(result, ScoreError):
            positions = {"pair": ("chosen", "rejected")[index > 0], "group": f"responses[{index}]"}
            prefix = f"`{positions[kind]}`: " if kind in positions else ""
            return ScoreError(result.code, prefix + result.message)
    return None


def collect_warnings(warnings: Sequence[str], results: Sequence[Reward | ScoreError]) -> list[str]:
    """Return the distinct warnings of a row.

    Args:
        warnings: warnings about how the record was read.
        results: results of the record's conversations, whose warnings follow.
    """
    reward_warnings = (
        warning for result in results if isinstance(result, Reward) for warning in result.warnings
    )
    return list(dict.fromkeys([*warnings, *reward_warnings]))


def merge_record(
    record: object,
    output: RowOutput,
    raw: str | None = None,
    names: ResultNames = DEFAULT_RESULT_NAMES,
) -> dict[str, Any]:
    """Return the record with its result columns.

    Args:
        record: the record as it was read; a value that is not an object goes into
            `UNREAD_COLUMN`.
        output: results of the row.
        raw: text of a row that cannot be read.
        names: names of the result columns.
    """
    if not isinstance(record, Mapping):
        record = {names[UNREAD_COLUMN]: record if raw is None else raw}
    elif not names.replaced_columns.isdisjoint(record):
        record = {key: value for key, value in record.items() if key not in names.replaced_columns}
    if not names.renames:
        return {**record, **output.columns}
    return {**record, **{names[key]: value for key, value in output.columns.items()}}


def _error_column(error: ScoreError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}
