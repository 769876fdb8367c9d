"""Split calls into work units, to isolate a conversation that crashes the actor that scores it.

A call is one unit at first. The unit of an actor that died goes to another actor, which gets no
other unit, so that the cause of a second death is known. A unit lost twice is split into sixteen
units, each for an actor without other work, and so on: one conversation out of 4,000 is found with
six lost actors; halves would cost fifteen, and every new actor loads the model again. A
conversation that was alone with two actors when they died is quarantined with the same error code
as in the service. This module does not depend on Ray.
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

_NUM_SUBUNITS = 16
# Actors that a unit may lose before it is split, and a single conversation before quarantine.
_MAX_LOSSES = 2


@dataclass(eq=False, slots=True)
class SubmittedCall:
    """The conversations of one `submit`.

    Attributes:
        conversations: all conversations of the call.
        truncation: how to handle conversations that are too long.
        future: resolved when all results are known.
        results: results so far, in order; None where the result is missing.
        num_computed_tokens: number of tokens computed so far.
    """

    conversations: Sequence[ChatJson]
    truncation: Truncation
    future: Future[ScoreBatchResult] = field(default_factory=Future)
    results: list[Reward | ScoreError | None] = field(default_factory=list)
    num_computed_tokens: int = 0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.conversations)

    def try_start(self) -> bool:
        """Return whether the result is still wanted; the call can no longer be cancelled then."""
        return self.future.running() or (
            not self.future.done() and self.future.set_running_or_notify_cancel()
        )

    def fail(self, error: RewardError) -> None:
        """Fail the call because the executor failed."""
        with contextlib.suppress(InvalidStateError):  # cancelled or done already
            self.future.set_exception(error)

    def set_results(self, start: int, scored: ScoreBatchResult) -> None:
        """Set the results of consecutive conversations from index `start` on."""
        self.results[start : start + len(scored.results)] = scored.results
        self.num_computed_tokens += scored.num_computed_tokens
        if all(result is not None for result in self.results):
            results = [result for result in self.results if result is not None]
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(ScoreBatchResult(results, self.num_computed_tokens))


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Consecutive conversations of a call.

    Attributes:
        call: the call.
        start: index of the first conversation.
        stop: index after the last conversation.
        num_losses: number of actors that died while they had this unit.
        needs_own_actor: whether the unit's actor may have no other unit.
    """

    call: SubmittedCall
    start: int
    stop: int
    num_losses: int = 0
    needs_own_actor: bool = False

    @classmethod
    def from_call(cls, call: SubmittedCall) -> WorkUnit:
        """Create the unit of a whole call."""
        return cls(call, 0, len(call.conversations))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def conversations(self) -> list[ChatJson]:
        """Conversations of the unit."""
        return list(self.call.conversations[self.start : self.stop])

    def complete(self, result: ScoreBatchResult) -> None:
        """Set the results of this unit."""
        assert len(result.results) == len(self)
        self.call.set_results(self.start, result)

    def handle_actor_loss(self) -> list[WorkUnit]:
        """Handle the loss of the unit's actor.

        Returns:
            Units to send to other actors; empty if the conversation is quarantined.
        """
        # A single conversation counts only losses of an actor that had nothing else.
        num_losses = self.num_losses + (self.needs_own_actor or len(self) > 1)
        if num_losses < _MAX_LOSSES:
            return [WorkUnit(self.call, self.start, self.stop, num_losses, needs_own_actor=True)]
        if len(self) > 1:
            # Subunits inherit a loss from this unit, so one more loss splits them; a single
            # conversation starts without losses.
            return self._split(num_losses=_MAX_LOSSES - 1)
        self._set_error(
            ConversationQuarantinedError(
                f"{_MAX_LOSSES} actors were lost while each had only this conversation, so it is "
                "not sent to another one; the messages of the job and Ray's logs have the details"
            )
        )
        return []

    def handle_error(self, error: BaseException) -> list[WorkUnit]:
        """Handle an unexpected exception in the unit's actor, which is still alive.

        Returns:
            Units to send to other actors; empty if the conversation gets an error.
        """
        if len(self) > 1:
            return self._split(num_losses=0)
        self._set_error(
            ScoringError(
                f"scoring failed on this conversation ({type(error).__name__}); Ray's logs have "
                "the details"
            )
        )
        return []

    def _split(self, num_losses: int) -> list[WorkUnit]:
        size = -(-len(self) // _NUM_SUBUNITS)
        starts = range(self.start, self.stop, size)
        return [
            WorkUnit(
                self.call,
                start,
                min(start + size, self.stop),
                num_losses if size > 1 else 0,
                needs_own_actor=True,
            )
            for start in starts
        ]

    def _set_error(self, error: RewardError) -> None:
        self.call.set_results(self.start, ScoreBatchResult([ScoreError.from_exception(error)], 0))
