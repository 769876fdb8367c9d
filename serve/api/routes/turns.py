"""`"turns": "all"` of `POST /v1/score`: the reward after each message of the assistant."""

from __future__ import annotations

from itertools import islice
from typing import Any

from fastapi.responses import JSONResponse

from rm_core import Encoded, Reward, ScoreError, find_unshared_turns, split_turns
from serve.api.routes.results import build_envelope, build_error, build_item, try_parse
from serve.api.schemas import ScoreRequest
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations, check_num_messages
from serve.telemetry.logging import current_request


async def score_turns(body: ScoreRequest, service: ScoringService) -> JSONResponse:
    """Return the reward of each conversation, and of each part that ends with an answer.

    The parts are prefixes of the conversation, so that the model computes their tokens once.
    """
    limits = service.settings
    split: list[list[tuple[int, Any]] | ScoreError] = []
    for conversation in body.get_conversations():
        error = check_num_messages(conversation, limits.max_messages)
        split.append(try_parse(split_turns, conversation) if error is None else error)
    turns = [turn for item in split if not isinstance(item, ScoreError) for turn in item]
    check_num_conversations(len(turns), limits.max_conversations, "turns of the assistant")
    scores = await service.score(
        body.model,
        [conversation for _, conversation in turns],
        body.truncation,
        body.priority,
        context=current_request(),
        kinds=("classifier",),
        keep_encoded=True,
    )
    scored = zip(scores.results, scores.encoded, strict=True)
    results = []
    for index, item in enumerate(split):
        if isinstance(item, ScoreError):
            results.append({"index": index, **build_error(item)})
            continue
        messages = [message for message, _ in item]
        rewards, encoded = zip(*islice(scored, len(item)), strict=True)
        results.append({"index": index, **_build_result(messages, rewards, encoded)})
    if body.is_single and "reward" in results[0]:
        results[0]["score"] = results[0]["reward"]
    return JSONResponse({**build_envelope("score", scores), "results": results})


def _build_result(
    messages: list[int],
    rewards: tuple[Reward | ScoreError, ...],
    encoded: tuple[Encoded | ScoreError, ...],
) -> dict[str, Any]:
    """Return the fields of a conversation, whose last turn is the whole."""
    result = build_item(rewards[-1])
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
