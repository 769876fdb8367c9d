"""Results of a row, their columns, and the names under which a job writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from rm_core import Reward, ScoreError
from serve.errors import JobInputError
from serve.jobs.columns import RecordKind

Result: TypeAlias = Reward | ScoreError

RESULT_COLUMNS: Mapping[RecordKind, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
}

RESULT_NAMES = (
    *(name for names in RESULT_COLUMNS.values() for name in names),
    "step_rewards",
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


class RowResults(NamedTuple):
    """Results of one row.

    Attributes:
        kind: kind of the record; None if unknown.
        results: results of the record's conversations, in order.
        error: why the row has no conversations; None if it has some, even if they failed.
        warnings: warnings about how the record was read, without the warnings of rewards.
    """

    kind: RecordKind | None
    results: Sequence[Result] = ()
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def failure(self) -> ScoreError | None:
        """Content of the `error` column: `error`, or the first failed result and its position."""
        if self.error:
            return self.error
        for index, result in enumerate(self.results):
            if isinstance(result, ScoreError):
                side = ("chosen", "rejected")[index > 0]
                prefixes = {"pair": f"`{side}`: ", "group": f"`responses[{index}]`: "}
                return ScoreError(result.code, prefixes.get(self.kind or "", "") + result.message)
        return None

    @property
    def all_warnings(self) -> list[str]:
        """Content of the `warnings` column: distinct warnings, those of the record first."""
        of_rewards = (w for r in self.results if isinstance(r, Reward) for w in r.warnings)
        return list(dict.fromkeys([*self.warnings, *of_rewards]))

    def build_columns(self) -> dict[str, Any]:
        """Return the result columns that the row has: rewards, `error`, `truncated`, `warnings`."""
        failure = self.failure
        rewards = [result for result in self.results if isinstance(result, Reward)]
        columns: dict[str, Any] = {}
        if self.kind == "group" and self.results:
            columns["rewards"] = [r.reward if isinstance(r, Reward) else None for r in self.results]
            if any(r.step_rewards for r in rewards):
                columns["step_rewards"] = [
                    list(r.step_rewards) if isinstance(r, Reward) else None for r in self.results
                ]
        elif failure is None and self.kind == "pair":
            chosen, rejected = (r.reward for r in rewards)
            columns |= {"chosen_reward": chosen, "rejected_reward": rejected}
            columns["margin"] = chosen - rejected
        elif failure is None and self.kind == "steps":
            columns["step_rewards"] = list(rewards[0].step_rewards)
        elif failure is None and self.kind == "verdicts":
            # Both orders of a pair, each as log-odds that the first response of the pair is better.
            orders = zip(rewards[::2], rewards[1::2], strict=True)
            columns["log_odds"] = [[given.reward, -swapped.reward] for given, swapped in orders]
        elif failure is None:
            columns["reward"] = rewards[0].reward
            if rewards[0].step_rewards:
                columns["step_rewards"] = list(rewards[0].step_rewards)
        if any(r.truncated for r in rewards):
            columns["truncated"] = True
        if warnings := self.all_warnings:
            columns["warnings"] = warnings
        if failure:
            columns["error"] = {"code": failure.code, "message": failure.message}
        return columns


def merge_record(record: object, columns: Mapping[str, Any], names: ResultNames) -> dict[str, Any]:
    """Return the record with its result columns; see `Row.content` and `RowResults`.

    A record that is not an object goes into `UNREAD_COLUMN`.
    """
    if not isinstance(record, Mapping):
        record = {names[UNREAD_COLUMN]: record}
    elif not names.replaced_columns.isdisjoint(record):
        record = {key: value for key, value in record.items() if key not in names.replaced_columns}
    if not names.renames:
        return {**record, **columns}
    return {**record, **{names[key]: value for key, value in columns.items()}}
