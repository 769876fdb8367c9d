"""What the ways to score a job have in common, so that a job does not know which one it runs on.

A carrier knows nothing of rows, files or chunks: it gets conversations that are well-formed and
distinct, and gives back a reward or an error for each. All that survives a restart is the job's.
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
    """What came back of one call.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: tokens that went through the model; what conversations share is
            counted once.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """What gives the rewards.

    Attributes:
        name: as it is called in requests.
        fingerprint: what makes two rewards comparable.
        max_length: most tokens of a conversation.
    """

    name: str
    fingerprint: Fingerprint
    max_length: int


class Executor(Protocol):
    """Carries conversations to where they are scored. Used from one thread.

    Attributes:
        patience_s: seconds for which a job that is asked to stop waits for what is in flight. Not
            None for services, which may never answer: then `identity` and `count_tokens` may be
            interrupted, too. None: until it is done.
    """

    drain_timeout_s: float | None

    def resolve_identity(self) -> dict[str, Any]:
        """What decides the rewards, as plain JSON data; a job goes on only where it is the same.

        Costs no weights: asked before anything is scored, and also when nothing is left to do.

        Raises:
            RewardError: there is no such model or service.
        """
        ...

    @property
    def capacity(self) -> int:
        """How many calls are worth having in flight, at least 1; may change while it runs."""
        ...

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Begin to score some conversations; returns at once.

        The future fails only where the whole way fails (the service is gone, the model cannot be
        loaded), which ends the job so that it can be resumed; its error is a `RewardError` then.

        Args:
            conversations: at least one; distinct.
            truncation: what to do with what is too long.
        """
        ...

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Tokens of each conversation as it would be scored, in order; nothing is scored.

        Raises:
            RewardError: as for the future of `submit`.
        """
        ...

    def close(self) -> None:
        """Let go of models and connections; calls that have not begun are cancelled."""
        ...


class ModelExecutor(Executor, Protocol):
    """A carrier that can tell which model it scores with."""

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """What gives the rewards; None as long as that is not known.

        Args:
            ask: whether to load the model, or to ask the service, where it is not known yet.

        Raises:
            RewardError: as for `identity`, if it was to be asked.
        """
        ...
