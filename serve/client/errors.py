"""What the clients raise: a service that did not answer, and conversations without a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_core import RewardError, ScoreError

_MAX_MESSAGES = 5


class ServiceError(RewardError):
    """The service refused the request, could not be reached, or answered something else.

    Attributes:
        may_pass: whether the same request may succeed later, or at another address.
        status: of the answer; None if there was none.
    """

    code = "service_error"
    retryable = False
    status: int | None = None


class ScoringFailedError(ServiceError):
    """Some conversations have no reward; which, and why.

    Attributes:
        results: what came for each conversation (pair, response), in order: also the rewards of
            the others.
    """

    code = "not_all_scored"

    def __init__(self, detail: str, results: Sequence[Any] = ()) -> None:
        super().__init__(detail)
        self.results = list(results)

    @property
    def failures(self) -> dict[int, ScoreError]:
        """The error of each that has no reward, by its index."""
        return {i: r for i, r in enumerate(self.results) if isinstance(r, ScoreError)}

    @classmethod
    def from_results(
        cls, results: Sequence[Any], item_name: str = "conversation"
    ) -> ScoringFailedError:
        """The error of results of which some are errors."""
        failed = [(i, r) for i, r in enumerate(results) if isinstance(r, ScoreError)]
        told = "; ".join(
            f"{item_name} {i}: {r.code}: {r.message}" for i, r in failed[:_MAX_MESSAGES]
        )
        more = len(failed) - _MAX_MESSAGES
        if more > 0:
            told += (
                f"; and {more} more ({', '.join(str(i) for i, _ in failed[_MAX_MESSAGES:][:50])}"
            )
            told += ", ...)" if more > 50 else ")"
        return cls(f"{len(failed)} of {len(results)} {item_name}s got no reward: {told}", results)
