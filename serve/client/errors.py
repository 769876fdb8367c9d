"""Errors of the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import RewardError, ScoreError

_MAX_MESSAGES = 5


class ServiceError(RewardError):
    """The service rejected the request, was unreachable, or returned an unexpected response.

    Attributes:
        retryable: whether the same request may succeed later, or at another address.
        status: HTTP status of the response; None without a response.
        error_code: `code` of the service's error, such as `wrong_kind`; None without one.
    """

    code = "service_error"

    def __init__(
        self,
        detail: str,
        *,
        retryable: bool = False,
        status: int | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.retryable = retryable
        self.status = status
        self.error_code = error_code


class ModelChangedError(ServiceError):
    """The rewards of a response are from another model than those before it.

    Attributes:
        expected: fingerprint of the rewards before.
        found: fingerprint of the new ones.
    """

    def __init__(
        self,
        detail: str,
        expected: Mapping[str, Any] | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.expected = dict(expected or {})
        self.found = dict(found or {})

    @classmethod
    def from_fingerprints(
        cls, expected: Mapping[str, Any], found: Mapping[str, Any]
    ) -> ModelChangedError:
        """Return the error for rewards with other fingerprints."""
        return cls(
            f"rewards of two models cannot be compared: the expected rewards are from {expected}, "
            f"the new ones are from {found}; give addresses that serve the same model in the same "
            "way, or create a new client if the model was replaced on purpose",
            expected,
            found,
        )


class ScoringFailedError(ServiceError):
    """Some conversations have no reward. The message names them and the reasons.

    Attributes:
        results: the result of each conversation (pair, response), in order, including the
            successful ones.
    """

    code = "not_all_scored"

    def __init__(self, detail: str, results: Sequence[Any] = ()) -> None:
        super().__init__(detail)
        self.results = list(results)

    @property
    def failures(self) -> dict[int, ScoreError]:
        """The error of each item without a reward, by the item's index."""
        return {i: r for i, r in enumerate(self.results) if isinstance(r, ScoreError)}

    @classmethod
    def from_results(
        cls, results: Sequence[Any], item_name: str = "conversation"
    ) -> ScoringFailedError:
        """Return the error for results of which some are errors."""
        failed = [(i, r) for i, r in enumerate(results) if isinstance(r, ScoreError)]
        reasons = "; ".join(
            f"{item_name} {i}: {r.code}: {r.message}" for i, r in failed[:_MAX_MESSAGES]
        )
        num_more = len(failed) - _MAX_MESSAGES
        if num_more > 0:
            indices = ", ".join(str(i) for i, _ in failed[_MAX_MESSAGES:][:50])
            reasons += f"; and {num_more} more ({indices}"
            reasons += ", ...)" if num_more > 50 else ")"
        return cls(
            f"{len(failed)} of {len(results)} {item_name}s got no reward: {reasons}", results
        )
