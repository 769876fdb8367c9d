"""What a row gets for its rewards, and which columns of an earlier run that replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rm_core import Reward, ScoreError
from serve.jobs.records import Shape, Work

RESULT_COLUMNS: Mapping[Shape, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
}


_OURS: Mapping[Shape | None, frozenset[str]] = {
    None: frozenset(["error"]),
    **{shape: frozenset([*names, "error"]) for shape, names in RESULT_COLUMNS.items()},
}


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
    if warnings := list(dict.fromkeys(w for r in done for w in r.warnings)):
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


def merged(record: object, outcome: Outcome, raw: str | None = None) -> dict[str, Any]:
    """The record with its results; columns of an earlier run are replaced.

    Args:
        record: as it was read; one that is no object goes into a column `line`.
        outcome: what became of it.
        raw: stands for the record, where the line was no JSON.
    """
    if not isinstance(record, Mapping):
        record = {"line": record if raw is None else raw}
    replaced = replaced_columns(record, outcome.shape)
    if replaced.isdisjoint(record):
        return {**record, **outcome.columns}
    kept = {key: value for key, value in record.items() if key not in replaced}
    return {**kept, **outcome.columns}


def replaced_columns(
    names: Mapping[str, Any] | Sequence[str], shape: Shape | None
) -> frozenset[str]:
    """Columns of an earlier run, among those of a record.

    Args:
        names: of the record's columns.
        shape: of the record.
    """
    ours = _OURS[shape]
    if ours.isdisjoint(names):
        return ours
    return ours | {"truncated", "warnings"}  # else these two are the caller's own


def _error(error: ScoreError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}
