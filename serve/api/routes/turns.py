"""`"turns": "all"` of `POST /v1/score`: the reward after each message of the assistant."""

from __future__ import annotations

from itertools import islice
from typing import Any

from rm_core import Encoded, Reward, ScoreError, find_unshared_turns, split_turns
from rm_core.calibration import Calibration
from rm_core.inputs.conversations import ChatJson
from serve.api.routes.results import build_error, build_item, parse_each
from serve.api.schemas import ScoreRequest
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations
from serve.telemetry.logging import RequestContext

# Every turn is rendered with all messages before it, so that long conversations cost the square of
# their length.
_MESSAGES_PER_TURN = 50


async def score_turns(
    body: ScoreRequest, service: ScoringService, name: str | None, context: RequestContext
) -> tuple[ScoreResult, list[dict[str, Any]]]:
    """Return the scores, and the fields of each conversation with the reward of each part.

    The parts, which end with an answer, are prefixes of the conversation, so that their tokens are
    computed once. The arguments are those of `score_with_model`.
    """
    limits = service.settings
    num_turns = num_messages = 0

    def split_within_limits(conversation: object) -> list[tuple[int, ChatJson]]:
        nonlocal num_turns, num_messages
        turns = split_turns(conversation)
        num_turns += len(turns)
        check_num_conversations(num_turns, limits.max_conversations, "turns of the assistant")
        num_messages += sum(index + 1 for index, _ in turns)
        limit = _MESSAGES_PER_TURN * limits.max_conversations
        check_num_conversations(num_messages, limit, "messages up to the turns of the assistant")
        return turns

    conversations = body.get_conversations()
    split = await parse_each(split_within_limits, conversations, limits.max_messages)
    turns = [turn for item in split if not isinstance(item, ScoreError) for turn in item]
    scores = await service.score(
        name,
        [conversation for _, conversation in turns],
        body.truncation,
        body.priority,
        context=context,
        kinds=("classifier",),
        keep_encoded=True,
    )
    scored = zip(scores.results, scores.encoded, strict=True)
    results = []
    for item in split:
        if isinstance(item, ScoreError):
            results.append(build_error(item))
            continue
        messages = [message for message, _ in item]
        rewards, encoded = zip(*islice(scored, len(item)), strict=True)
        results.append(_build_result(messages, rewards, encoded, scores.calibration))
    return scores, results


def _build_result(
    messages: list[int],
    rewards: tuple[Reward | ScoreError, ...],
    encoded: tuple[Encoded | ScoreError, ...],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Return the fields of a conversation, whose last turn is the whole."""
    result = build_item(rewards[-1], calibration=calibration)
    result["turn_rewards"] = [
        {"message": message}
        | ({"reward": reward.reward} if isinstance(reward, Reward) else build_error(reward))
        for message, reward in zip(messages, rewards, strict=True)
    ]
    turns = [
        (message, item)
        for message, item in zip(messages, encoded, strict=True)
        if isinstance(item, Encoded)
    ]
    if isinstance(encoded[-1], Encoded) and (warning := find_unshared_turns(turns)):
        result["warnings"] = [*result.get("warnings", ()), warning]
    return result
