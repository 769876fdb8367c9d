"""The interface of executors; a job does not depend on which executor scores it.

An executor does not know rows, files or chunks: it receives well-formed, distinct conversations and
returns a reward or an error for each. The job alone keeps state across restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from rm_core import Fingerprint, Reward, ScoreError, Truncation
from rm_core.inputs.conversations import ChatJson


@dataclass(frozen=True, slots=True)
class ScoreBatchResult:
    """Results of one call.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: number of tokens that went through the model; shared prefixes count
            once.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """The model that scores.

    Attributes:
        name: name of the model in requests.
        fingerprint: fingerprint of the rewards.
        max_length: maximum number of tokens in a conversation.
    """

    name: str
    fingerprint: Fingerprint
    max_length: int


class Executor(Protocol):
    """Scores conversations. Use from one thread.

    Attributes:
        drain_timeout_s: seconds that a stopping job waits for calls in flight; None to wait until
            they are finished. Set for services, which may never respond: `resolve_identity` and
            `count_tokens` may then be interrupted as well.
    """

    drain_timeout_s: float | None

    def resolve_identity(self) -> dict[str, Any]:
        """Return everything that decides the rewards, as JSON data.

        A job resumes only if its identity is unchanged. This method loads no weights: it is called
        before anything is scored, and also when nothing is left to score.

        Raises:
            RewardError: the model or the service does not exist.
        """
        ...

    @property
    def capacity(self) -> int:
        """Useful number of calls in flight, at least 1; may change while the job runs."""
        ...

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Start to score conversations and return at once.

        The future fails only if the executor itself fails (the service is gone, the model cannot
        be loaded), with a `RewardError`; this ends the job, which can be resumed.

        Args:
            conversations: distinct conversations, at least one.
            truncation: how to handle conversations that are too long.
        """
        ...

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation, in order, without scoring.

        Raises:
            RewardError: the executor failed, as for the future of `submit`.
        """
        ...

    def close(self) -> None:
        """Release models and connections; calls that have not started are cancelled."""
        ...


class ModelExecutor(Executor, Protocol):
    """An executor that knows which model it scores with."""

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """Return the model, or None if it is not known yet.

        Args:
            fetch: whether to load the model or to query the service if the model is not known yet.

        Raises:
            RewardError: `fetch` failed, as for `resolve_identity`.
        """
        ...
