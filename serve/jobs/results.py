"""What a row gets for its rewards, and which columns of an earlier run that replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rm_core import Reward, ScoreError
from serve.jobs.records import Shape, Work


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
        work: what `parse_record` made of the row, or why it could not.
        results: of `work.conversations`, in order; empty for a `ScoreError`.
    """
    raise NotImplementedError


def merged(record: object, outcome: Outcome) -> dict[str, Any]:
    """The record with its results; columns of an earlier run are replaced."""
    raise NotImplementedError
