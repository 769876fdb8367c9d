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

RESULT_COLUMNS = (
    "reward", "chosen_reward", "rejected_reward", "margin", "rewards", "truncated", "warnings",
    "error",
)  # fmt: skip
Shape = Literal["conversation", "pair", "group"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one record asks for.

    Attributes:
        shape: decides which columns the answer gets.
        conversations: in order; an error in the place of a response that has no valid shape.
    """

    shape: Shape
    conversations: tuple[Messages | ScoreError, ...]


def parse_record(record: object) -> Work:
    """The conversations of a record.

    Raises:
        InvalidConversationError: no known shape, or a conversation that cannot be scored.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    if "messages" in record:
        return Work("conversation", (parse_conversation(record["messages"]),))
    if "chosen" in record or "rejected" in record:
        return Work("pair", parse_pair(record))
    if "responses" in record:
        responses = record["responses"]
        if not isinstance(responses, list) or record.get("prompt") is None:
            raise InvalidConversationError(
                "a record with `responses` needs a `prompt` and a list of responses"
            )
        return Work("group", tuple(_lenient_join(record["prompt"], r) for r in responses))
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
    kept = {key: value for key, value in record.items() if key not in RESULT_COLUMNS}
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


def _lenient_join(prompt: object, response: object) -> Messages | ScoreError:
    # A bad response of a group must not spoil its neighbours.
    try:
        return join(prompt, response)
    except InputError as error:
        return ScoreError.of(error)


def _error(error: ScoreError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}
