"""Correlation of a job's rewards with those that a trainer wrote next to its rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve.jobs.columns import ROLLOUT, VERL_DUMP
from serve.jobs.inputs.rows import Row
from serve.jobs.row_results import RowResults

_REWARD_COLUMNS = (("score", tuple(VERL_DUMP)), ("reward", ROLLOUT))
"""Names of the trainer's rewards, each with the other columns of its form."""


@dataclass(slots=True)
class RewardCorrelation:
    """Pearson's correlation over the rows added so far, computed in one pass.

    Attributes:
        column: name of the trainer's rewards; None before the first row that has one.
    """

    column: str | None = None
    _count: int = 0
    _mean_old: float = 0.0
    _mean_new: float = 0.0
    _squares_old: float = 0.0
    _squares_new: float = 0.0
    _products: float = 0.0

    @property
    def value(self) -> float | None:
        """The correlation; None with fewer than two rows, or if one side is constant."""
        scale = math.sqrt(self._squares_old) * math.sqrt(self._squares_new)
        return self._products / scale if scale else None

    def add(self, row: Row, results: RowResults) -> None:
        """Add a row if it is a rollout with both rewards."""
        found = _find_reward(row)
        if found is None or results.kind != "conversation" or len(results.rewards) != 1:
            return
        name, old = found
        new = results.rewards[0]
        if new is None or self.column not in (None, name):
            return
        self.column = name
        self._count += 1
        difference_old, difference_new = old - self._mean_old, new - self._mean_new
        self._mean_old += difference_old / self._count
        self._mean_new += difference_new / self._count
        self._squares_old += difference_old * (old - self._mean_old)
        self._squares_new += difference_new * (new - self._mean_new)
        self._products += difference_old * (new - self._mean_new)


def _find_reward(row: Row) -> tuple[str, float] | None:
    """Return the name and the value of the trainer's reward; None if the row has none."""
    record = row.record if isinstance(row.record, Mapping) else {}
    schema = row.cells[0].schema if row.cells else None
    for name, others in _REWARD_COLUMNS:
        if schema is None:
            has_form = name in record and all(other in record for other in others)
        else:
            has_form = all(schema.get_field_index(one) >= 0 for one in (name, *others))
        if has_form:
            value = row.cells[0].column(name)[row.cells[1]].as_py() if row.cells else record[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return (name, float(value)) if is_number and math.isfinite(value) else None
    return None
