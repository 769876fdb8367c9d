"""The shapes of a job's records: what is to be scored in one, and how its rewards are put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rm_core import (
    InputError,
    InvalidConversationError,
    Reward,
    ScoreError,
    join,
    parse_conversation,
    parse_pair,
)
from rm_core.conversations import Messages
from serve.jobs.columns import AS_USUAL, Columns

Shape = Literal["conversation", "pair", "group"]
RESULT_COLUMNS: Mapping[Shape, tuple[str, ...]] = {
    "conversation": ("reward",),
    "pair": ("chosen_reward", "rejected_reward", "margin"),
    "group": ("rewards",),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one record asks for.

    Attributes:
        shape: decides which columns the answer gets.
        conversations: in order; an error in the place of a response that has no valid shape.
    """

    shape: Shape
    conversations: tuple[Messages | ScoreError, ...]


def parse_record(record: object, columns: Columns = AS_USUAL) -> Work:
    """The conversations of a record.

    Args:
        record: of any known shape.
        columns: where the caller said its parts are.

    Raises:
        InvalidConversationError: no known shape, or a conversation that cannot be scored.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    shape = _shape_of(record)
    if shape == "conversation":
        return Work(shape, (parse_conversation(record["messages"]),))
    if shape == "pair":
        return Work(shape, parse_pair(record))
    if shape == "group":
        responses = record["responses"]
        if not isinstance(responses, list) or record.get("prompt") is None:
            raise InvalidConversationError(
                "a record with `responses` needs a `prompt` and a list of responses"
            )
        return Work(shape, tuple(_lenient_join(record["prompt"], r) for r in responses))
    raise InvalidConversationError(
        "no known shape; a record has `messages`, or `chosen` and `rejected` (and `prompt`), or "
        f"`prompt` and `responses`; this one has {', '.join(f'`{key}`' for key in record)}"
    )


def finish(record: object, work: Work | ScoreError, results: Sequence[Reward | ScoreError]) -> Any:
    """The record with its rewards; columns of an earlier run are replaced.

    Args:
        record: as it was read.
        work: what `parse_record` made of it, or why it could not.
        results: of `work.conversations`, in order; empty for a `ScoreError`.
    """
    if not isinstance(record, Mapping):
        record = {"line": record}
    shape = _shape_of(record)
    ours: tuple[str, ...] = (*RESULT_COLUMNS[shape], "error") if shape else ("error",)
    if any(column in record for column in ours):  # else these two are the caller's own
        ours = (*ours, "truncated", "warnings")
    kept = {key: value for key, value in record.items() if key not in ours}
    if isinstance(work, ScoreError):
        return kept | _error(work)
    error = next((r for r in results if isinstance(r, ScoreError)), None)
    rewards = [r.reward if isinstance(r, Reward) else None for r in results]
    done = [r for r in results if isinstance(r, Reward)]
    if work.shape == "group":
        kept["rewards"] = rewards
    elif error is None and work.shape == "pair":
        chosen, rejected = (r.reward for r in done)
        kept |= {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected}
    elif error is None:
        kept["reward"] = rewards[0]
    if any(r.truncated for r in done):
        kept["truncated"] = True
    if warnings := list(dict.fromkeys(w for r in done for w in r.warnings)):
        kept["warnings"] = warnings
    return kept | (_error(error) if error else {})


def _shape_of(record: Mapping[str, Any]) -> Shape | None:
    if "messages" in record:
        return "conversation"
    if "chosen" in record or "rejected" in record:
        return "pair"
    return "group" if "responses" in record else None


def _lenient_join(prompt: object, response: object) -> Messages | ScoreError:
    # A bad response of a group must not spoil its neighbours.
    try:
        return join(prompt, response)
    except InputError as error:
        return ScoreError.of(error)


def _error(error: ScoreError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}
