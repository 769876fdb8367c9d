"""Calls in pieces, so that a conversation that kills whoever scores it ends up alone.

A piece goes whole at first. What was in the hands of an actor that died goes to another, which
then has nothing else, so that it is known what it died of. Lost again, it is cut into sixteen, each
for an actor of its own, and so on: a conversation out of 4,000 is found by six lost actors, where
halves would cost fifteen, and every one of them loads the model again. A conversation that was
alone with two actors when they died is given up with the code that the service has for it. Knows
nothing of Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from rm_core import Reward, RewardError, ScoreError, ScoringError, Truncation
from rm_core.inputs.conversations import ChatJson
from serve.errors import ConversationQuarantinedError
from serve.jobs.executors.base import ScoreBatchResult

_PARTS = 16
# Actors that a piece may lose before it is cut, and a conversation alone before it is given up.
_MAX_LOSSES = 2


@dataclass(eq=False, slots=True)
class SubmittedCall:
    """What was submitted at once.

    Attributes:
        results: what is known so far, in order.
        future: gets a result once all is known.
    """

    conversations: Sequence[ChatJson]
    truncation: Truncation
    future: Future[ScoreBatchResult] = field(default_factory=Future)
    results: list[Reward | ScoreError | None] = field(default_factory=list)
    num_computed_tokens: int = 0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.conversations)

    def try_start(self) -> bool:
        """Whether anybody waits for it; from now on it cannot be cancelled."""
        return self.future.running() or (
            not self.future.done() and self.future.set_running_or_notify_cancel()
        )

    def fail(self, error: RewardError) -> None:
        """The whole way has failed."""
        with contextlib.suppress(InvalidStateError):  # cancelled, or known already
            self.future.set_exception(error)

    def set_results(self, start: int, scored: ScoreBatchResult) -> None:
        """Results from a place on."""
        self.results[start : start + len(scored.results)] = scored.results
        self.num_computed_tokens += scored.num_computed_tokens
        if all(result is not None for result in self.results):
            known = [result for result in self.results if result is not None]
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(ScoreBatchResult(known, self.num_computed_tokens))


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Consecutive conversations of a call.

    Attributes:
        start: the first of them.
        stop: behind the last.
        losses: actors that died with it.
        alone: whether its actor may have nothing else.
    """

    call: SubmittedCall
    start: int
    stop: int
    num_losses: int = 0
    needs_own_actor: bool = False

    @classmethod
    def from_call(cls, call: SubmittedCall) -> WorkUnit:
        """All of a call."""
        return cls(call, 0, len(call.conversations))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def conversations(self) -> list[ChatJson]:
        """What is to be scored."""
        return list(self.call.conversations[self.start : self.stop])

    def complete(self, result: ScoreBatchResult) -> None:
        """The answer to this piece."""
        assert len(result.results) == len(self)
        self.call.set_results(self.start, result)

    def handle_actor_loss(self) -> list[WorkUnit]:
        """The actor went with it.

        Returns:
            What goes to another one; nothing if that was the last time.
        """
        # Not counted against a single conversation that others were beside.
        losses = self.num_losses + (self.needs_own_actor or len(self) > 1)
        if losses < _MAX_LOSSES:
            return [WorkUnit(self.call, self.start, self.stop, losses, needs_own_actor=True)]
        if len(self) > 1:
            # Parts were lost with the whole, so once more is enough to cut them; a single
            # conversation is judged by what becomes of it alone.
            return self._parts(losses=_MAX_LOSSES - 1)
        self._give_up(
            ConversationQuarantinedError(
                f"this conversation was alone with {_MAX_LOSSES} actors when they were lost, so it "
                "is not sent to another; what the job said meanwhile, and Ray's logs, have the "
                "details"
            )
        )
        return []

    def handle_error(self, error: BaseException) -> list[WorkUnit]:
        """The actor lives, and raised what no conversation should make it raise.

        Returns:
            As `lost`.
        """
        if len(self) > 1:
            return self._parts(losses=0)
        self._give_up(
            ScoringError(
                f"scoring failed on this conversation ({type(error).__name__}); Ray's logs have "
                "the details"
            )
        )
        return []

    def _parts(self, losses: int) -> list[WorkUnit]:
        size = -(-len(self) // _PARTS)
        starts = range(self.start, self.stop, size)
        return [
            WorkUnit(
                self.call,
                at,
                min(at + size, self.stop),
                losses if size > 1 else 0,
                needs_own_actor=True,
            )
            for at in starts
        ]

    def _give_up(self, error: RewardError) -> None:
        self.call.set_results(self.start, ScoreBatchResult([ScoreError.from_exception(error)], 0))
