"""What a row gets for its rewards, and in which columns of the output it goes."""

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
"""Names of results, as they are written where the input has no column of that name."""
UNREAD_COLUMN = "line"
"""Column for the text of a row that cannot be read."""
RESULT_PREFIX = "skyreward_"
"""Begins the name of a result where the input has a column of the result's own name."""
RESERVED_COLUMNS = frozenset(
    [
        *RESULT_NAMES,
        UNREAD_COLUMN,
        *(f"{RESULT_PREFIX}{name}" for name in (*RESULT_NAMES, UNREAD_COLUMN)),
    ]
)
"""Names of the input's columns that decide under which names results are written."""

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
    """Whether a value of a column `error` can only be of a run: an object with a code of ours."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"code", "message"}
        and isinstance(value["message"], str)
        and isinstance(value["code"], str)
        and value["code"] in _CODES
    )


@dataclass(frozen=True, slots=True)
class ResultNames:
    """Under which names a job writes its results: one decision for all rows.

    Attributes:
        renamed: other names of results (and of `UNREAD`), since the input has columns of those
            names.
        replaced: columns of the input that an earlier run wrote; they are left out.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    replaced_columns: frozenset[str] = frozenset()

    def __getitem__(self, result: str) -> str:
        return self.renames.get(result, result)

    @property
    def result_columns(self) -> frozenset[str]:
        """Columns that this job writes."""
        return frozenset(self[name] for name in RESULT_NAMES)

    def format_notices(self) -> Iterator[str]:
        """What a person must know of it, before anything is scored."""
        if self.replaced_columns:
            names = ", ".join(f"`{name}`" for name in sorted(self.replaced_columns))
            yield f"results of an earlier run are replaced: {names}"
        if self.renames:
            pairs = ", ".join(f"`{name}` in `{other}`" for name, other in self.renames.items())
            yield (
                "the input has columns that are named like results, and they are kept; this job "
                f"writes its own under other names: {pairs}. If they are results of an earlier "
                "run, --replace-results writes the new ones in their place"
            )


DEFAULT_RESULT_NAMES = ResultNames()


def choose_result_names(own: Set[str], earlier: Set[str], *, replace: bool = False) -> ResultNames:
    """Decide under which names a job writes its results.

    Args:
        own: columns of the input, of those in `WATCHED`, that no earlier run is known to have
            written.
        earlier: columns that an earlier run wrote.
        replace: whether a person said that all of them are results of an earlier run. Where there
            is `skyreward_margin`, that is the result and `margin` is not.

    Raises:
        JobInputError: a result has no free name.
    """
    if replace:
        named = {
            n: f"{RESULT_PREFIX}{n}" if f"{RESULT_PREFIX}{n}" in own | earlier else n
            for n in RESULT_NAMES
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
                f"the input has columns `{name}` and `{other}`, so a result has no name left; "
                f"rename `{other}`, or give --replace-results if it is a result of an earlier run"
            )
    return ResultNames(renamed, frozenset(earlier - own))


class RowOutput(NamedTuple):
    """What became of one row.

    Attributes:
        shape: of its record; None if it has none.
        columns: of results, as they go out: rewards, `error`, `truncated`, `warnings`.
    """

    kind: RecordKind | None
    columns: Mapping[str, Any]


def build_row_output(
    record: ParsedRecord | ScoreError, results: Sequence[Reward | ScoreError]
) -> RowOutput:
    """The result columns of one row.

    Args:
        work: what `try_parse_record` made of the row; an error for a row of no known shape.
        results: of `work.conversations`, in order: those that are errors already included.
    """
    if isinstance(record, ScoreError):
        return RowOutput(None, _error_column(record))
    if record.error:
        return RowOutput(record.kind, _error_column(record.error))
    error = find_first_error(record.kind, results)
    done = [r for r in results if isinstance(r, Reward)]
    columns: dict[str, Any] = {}
    if record.kind == "group":
        columns["rewards"] = [r.reward if isinstance(r, Reward) else None for r in results]
    elif error is None and record.kind == "pair":
        chosen, rejected = (r.reward for r in done)
        columns |= {"chosen_reward": chosen, "rejected_reward": rejected}
        columns["margin"] = chosen - rejected
    elif error is None:
        columns["reward"] = done[0].reward
    if any(r.truncated for r in done):
        columns["truncated"] = True
    if warnings := collect_warnings(record.warnings, results):
        columns["warnings"] = warnings
    return RowOutput(record.kind, columns | (_error_column(error) if error else {}))


def find_first_error(
    kind: RecordKind | None, results: Sequence[Reward | ScoreError]
) -> ScoreError | None:
    """The first error of a row, which says where in its record it is.

    Args:
        shape: of the record.
        results: of its conversations, in order.
    """
    for place, result in enumerate(results):
        if isinstance(result, ScoreError):
            where = {"pair": ("chosen", "rejected")[place > 0], "group": f"responses[{place}]"}
            named = f"`{where[kind]}`: " if kind in where else ""
            return ScoreError(result.code, named + result.message)
    return None


def collect_warnings(warnings: Sequence[str], results: Sequence[Reward | ScoreError]) -> list[str]:
    """The distinct warnings of a row.

    Args:
        warnings: about how its record was read.
        results: of its conversations, whose warnings follow.
    """
    of_rewards = (w for r in results if isinstance(r, Reward) for w in r.warnings)
    return list(dict.fromkeys([*warnings, *of_rewards]))


def merge_record(
    record: object,
    output: RowOutput,
    raw: str | None = None,
    names: ResultNames = DEFAULT_RESULT_NAMES,
) -> dict[str, Any]:
    """The record with its results, under the names that the job chose.

    Args:
        record: as it was read; one that is no object goes into the column for `UNREAD`.
        outcome: what became of it.
        raw: the text of a row that cannot be read.
        names: of the results.
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
