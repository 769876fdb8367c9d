"""Results of a row, their columns, and the names under which a job writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from rm_core import (
    RankedAnswer,
    Reward,
    ScoreError,
    Verdict,
    combine_results,
    rank_answers,
    sigmoid,
)
from rm_core.config import Kind
from serve.errors import JobInputError
from serve.jobs.columns import RecordKind

Result: TypeAlias = Reward | ScoreError

RESULT_COLUMNS: Mapping[RecordKind, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
    "judged_pair": (
        *("chosen_reward", "rejected_reward", "margin"),
        *("probability", "orders", "consistent"),
    ),
    "judged_group": ("rewards",),
}
STEP_COLUMNS: Mapping[RecordKind, tuple[str, ...]] = {
    "conversation": ("step_rewards",),
    "pair": ("chosen_step_rewards", "rejected_step_rewards"),
    "group": ("responses_step_rewards",),
}
"""Columns that a step model adds."""
COMMON_COLUMNS = ("error", "truncated", "warnings")
_RECORD_KINDS: Mapping[Kind, tuple[RecordKind, ...]] = {
    "classifier": ("conversation", "pair", "group"),
    "step": ("conversation", "pair", "group"),
    "judge": ("judged_pair", "judged_group"),
}


def list_result_columns(kinds: Iterable[RecordKind], model_kind: Kind) -> list[str]:
    """Return the names of the columns of results that records of these kinds may have."""
    names = [
        name
        for kind in kinds
        for name in (
            *RESULT_COLUMNS[kind],
            *(STEP_COLUMNS.get(kind, ()) if model_kind == "step" else ()),
        )
    ]
    return list(dict.fromkeys([*names, *COMMON_COLUMNS]))


_NAMES_OF_KIND: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(list_result_columns(records, kind)) for kind, records in _RECORD_KINDS.items()
}
RESULT_NAMES = tuple(dict.fromkeys(itertools.chain.from_iterable(_NAMES_OF_KIND.values())))
"""Names of the result columns of all kinds of models, if the input has none of these names."""
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
        "invalid_image",
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
        kind: kind of the model, which decides the results.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    replaced_columns: frozenset[str] = frozenset()
    kind: Kind = "classifier"

    def __getitem__(self, result: str) -> str:
        return self.renames.get(result, result)

    @property
    def result_columns(self) -> frozenset[str]:
        """Names of the result columns that this job writes."""
        return frozenset(self[name] for name in _NAMES_OF_KIND[self.kind])

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


def choose_result_names(
    own: Set[str], earlier: Set[str], *, replace: bool = False, kind: Kind = "classifier"
) -> ResultNames:
    """Choose the names of result columns.

    Args:
        own: input columns in `RESERVED_COLUMNS` that are not known to be written by an earlier run.
        earlier: input columns that an earlier run wrote.
        replace: whether the user declared all these columns as results of an earlier run. If there
            is `skyreward_margin`, then this column is the result, and `margin` is not.
        kind: kind of the model; columns named like results of another kind are left alone.

    Raises:
        JobInputError: a result has no free name.
    """
    results = _NAMES_OF_KIND[kind]
    if replace:
        named = {
            name: f"{RESULT_PREFIX}{name}" if f"{RESULT_PREFIX}{name}" in own | earlier else name
            for name in results
        }
        earlier = (own | earlier) & set(named.values())
        own = own - earlier
    renamed = {
        name: f"{RESULT_PREFIX}{name}" for name in sorted((*results, UNREAD_COLUMN)) if name in own
    }
    for name, other in renamed.items():
        if other in own:
            raise JobInputError(
                f"the input has columns `{name}` and `{other}`, so no name is left for a result; "
                f"rename `{other}`, or give --replace-results if it is a result of an earlier run"
            )
    return ResultNames(renamed, frozenset(earlier - own), kind)


class RowResults(NamedTuple):
    """Results of one row.

    Attributes:
        kind: kind of the record; None if unknown.
        results: results of the record's conversations, in order; of a judge, those of the orders
            of each pair of answers.
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
                prefix = self._format_position(index)
                return ScoreError(result.code, prefix + result.message)
        return None

    def _format_position(self, index: int) -> str:
        """Return which answer a result belongs to, to precede its error."""
        match self.kind:
            case "pair":
                return f"`{('chosen', 'rejected')[index > 0]}`: "
            case "group":
                return f"`responses[{index}]`: "
            case "judged_group":
                pairs = itertools.combinations(range(self._num_judged), 2)
                first, second = next(itertools.islice(pairs, index // 2, None))
                return f"`responses[{first}]` against `responses[{second}]`: "
        return ""

    @property
    def _num_judged(self) -> int:
        """Number of answers that a judge compared: n of them have n * (n - 1) results."""
        return (1 + math.isqrt(1 + 4 * len(self.results))) // 2

    @property
    def verdict(self) -> Verdict | None:
        """Verdict of a judge on a pair; None without one."""
        if self.kind != "judged_pair" or not self.results:
            return None
        verdict = combine_results(*self.results)
        return verdict if isinstance(verdict, Verdict) else None

    @property
    def rewards(self) -> list[float | None]:
        """Reward of each answer of the row, None where it failed; empty for pairs of a judge."""
        if self.kind == "judged_group" and self.results:
            orders = zip(self.results[::2], self.results[1::2], strict=True)
            ranked = rank_answers(self._num_judged, [combine_results(*both) for both in orders])
            return [one.reward if isinstance(one, RankedAnswer) else None for one in ranked]
        if self.kind == "judged_pair":
            return []
        return [one.reward if isinstance(one, Reward) else None for one in self.results]

    @property
    def all_warnings(self) -> list[str]:
        """Content of the `warnings` column: distinct warnings, those of the record first."""
        # The second order of a pair has the same texts as the first.
        is_judged = self.kind in ("judged_pair", "judged_group")
        results = self.results[::2] if is_judged else self.results
        of_rewards = (w for r in results if isinstance(r, Reward) for w in r.warnings)
        return list(dict.fromkeys([*self.warnings, *of_rewards]))

    def build_columns(self) -> dict[str, Any]:
        """Return the result columns that the row has: rewards, `error`, `truncated`, `warnings`."""
        failure = self.failure
        rewards = [result for result in self.results if isinstance(result, Reward)]
        columns: dict[str, Any] = {}
        if self.kind in ("group", "judged_group") and self.results:
            columns["rewards"] = self.rewards
            if any(r.step_rewards for r in rewards):
                columns["responses_step_rewards"] = [
                    list(r.step_rewards) if isinstance(r, Reward) else None for r in self.results
                ]
        elif failure is None and self.kind == "pair":
            chosen, rejected = rewards
            columns |= {"chosen_reward": chosen.reward, "rejected_reward": rejected.reward}
            columns["margin"] = chosen.reward - rejected.reward
            if chosen.step_rewards:
                columns["chosen_step_rewards"] = list(chosen.step_rewards)
                columns["rejected_step_rewards"] = list(rejected.step_rewards)
        elif verdict := self.verdict:
            columns |= _build_verdict(verdict)
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


def _build_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return the columns of a judge's verdict, as in `/v1/compare`."""
    return {
        "chosen_reward": None,
        "rejected_reward": None,
        "margin": verdict.margin,
        "probability": sigmoid(verdict.margin),
        "orders": [{"log_odds": odds, "label_mass": mass} for odds, mass in verdict.orders],
        "consistent": verdict.is_consistent,
    }


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
