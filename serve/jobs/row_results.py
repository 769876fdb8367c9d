"""What a row gets for its rewards, and in which columns of the output it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rm_core import Reward, ScoreError
from serve.errors import JobInputError
from serve.jobs.record_schema import Shape, Work

RESULT_COLUMNS: Mapping[Shape, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
}

RESULTS = (
    *(name for names in RESULT_COLUMNS.values() for name in names),
    "error",
    "truncated",
    "warnings",
)
"""Names of results, as they are written where the input has no column of that name."""
UNREAD = "line"
"""Column for the text of a row that cannot be read."""
PREFIX = "skyreward_"
"""Begins the name of a result where the input has a column of the result's own name."""
WATCHED = frozenset([*RESULTS, UNREAD, *(f"{PREFIX}{name}" for name in (*RESULTS, UNREAD))])
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


def is_error_of_run(value: object) -> bool:
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

    renamed: Mapping[str, str] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()

    def __getitem__(self, result: str) -> str:
        return self.renamed.get(result, result)

    @property
    def written(self) -> frozenset[str]:
        """Columns that this job writes."""
        return frozenset(self[name] for name in RESULTS)

    def lines(self) -> Iterator[str]:
        """What a person must know of it, before anything is scored."""
        if self.replaced:
            names = ", ".join(f"`{name}`" for name in sorted(self.replaced))
            yield f"results of an earlier run are replaced: {names}"
        if self.renamed:
            pairs = ", ".join(f"`{name}` in `{other}`" for name, other in self.renamed.items())
            yield (
                "the input has columns that are named like results, and they are kept; this job "
                f"writes its own under other names: {pairs}. If they are results of an earlier "
                "run, --replace-results writes the new ones in their place"
            )


AS_NAMED = ResultNames()


def choose_names(own: Set[str], earlier: Set[str], *, replace: bool = False) -> ResultNames:
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
        named = {n: f"{PREFIX}{n}" if f"{PREFIX}{n}" in own | earlier else n for n in RESULTS}
        earlier = (own | earlier) & set(named.values())
        own = own - earlier
    renamed = {name: f"{PREFIX}{name}" for name in sorted((*RESULTS, UNREAD)) if name in own}
    for name, other in renamed.items():
        if other in own:
            raise JobInputError(
                f"the input has columns `{name}` and `{other}`, so a result has no name left; "
                f"rename `{other}`, or give --replace-results if it is a result of an earlier run"
            )
    return ResultNames(renamed, frozenset(earlier - own))


class Outcome(NamedTuple):
    """What became of one row.

    Attributes:
        shape: of its record; None if it has none.
        columns: of results, as they go out: rewards, `error`, `truncated`, `warnings`.
    """

    shape: Shape | None
    columns: Mapping[str, Any]


def outcome_of(work: Work | ScoreError, results: Sequence[Reward | ScoreError]) -> Outcome:
    """The result columns of one row.

    Args:
        work: what `read_work` made of the row; an error for a row of no known shape.
        results: of `work.conversations`, in order: those that are errors already included.
    """
    if isinstance(work, ScoreError):
        return Outcome(None, _error(work))
    if work.error:
        return Outcome(work.shape, _error(work.error))
    error = first_failure(work.shape, results)
    done = [r for r in results if isinstance(r, Reward)]
    columns: dict[str, Any] = {}
    if work.shape == "group":
        columns["rewards"] = [r.reward if isinstance(r, Reward) else None for r in results]
    elif error is None and work.shape == "pair":
        chosen, rejected = (r.reward for r in done)
        columns |= {"chosen_reward": chosen, "rejected_reward": rejected}
        columns["margin"] = chosen - rejected
    elif error is None:
        columns["reward"] = done[0].reward
    if any(r.truncated for r in done):
        columns["truncated"] = True
    if warnings := every_warning(work.warnings, results):
        columns["warnings"] = warnings
    return Outcome(work.shape, columns | (_error(error) if error else {}))


def first_failure(shape: Shape | None, results: Sequence[Reward | ScoreError]) -> ScoreError | None:
    """The first error of a row, which says where in its record it is.

    Args:
        shape: of the record.
        results: of its conversations, in order.
    """
    for place, result in enumerate(results):
        if isinstance(result, ScoreError):
            where = {"pair": ("chosen", "rejected")[place > 0], "group": f"responses[{place}]"}
            named = f"`{where[shape]}`: " if shape in where else ""
            return ScoreError(result.code, named + result.message)
    return None


def every_warning(warnings: Sequence[str], results: Sequence[Reward | ScoreError]) -> list[str]:
    """The distinct warnings of a row.

    Args:
        warnings: about how its record was read.
        results: of its conversations, whose warnings follow.
    """
    of_rewards = (w for r in results if isinstance(r, Reward) for w in r.warnings)
    return list(dict.fromkeys([*warnings, *of_rewards]))


def merged(
    record: object, outcome: Outcome, raw: str | None = None, names: ResultNames = AS_NAMED
) -> dict[str, Any]:
    """The record with its results, under the names that the job chose.

    Args:
        record: as it was read; one that is no object goes into the column for `UNREAD`.
        outcome: what became of it.
        raw: the text of a row that cannot be read.
        names: of the results.
    """
    if not isinstance(record, Mapping):
        record = {names[UNREAD]: record if raw is None else raw}
    elif not names.replaced.isdisjoint(record):
        record = {key: value for key, value in record.items() if key not in names.replaced}
    if not names.renamed:
        return {**record, **outcome.columns}
    return {**record, **{names[key]: value for key, value in outcome.columns.items()}}


def _error(error: ScoreError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}
