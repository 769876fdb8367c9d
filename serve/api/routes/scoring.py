"""The native scoring routes: score, compare, rank, render."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from rm_core import (
    Chat,
    Encoded,
    Reward,
    ScoreError,
    add_tools,
    join_chat,
    parse_pair,
    parse_prompt_chat,
    sigmoid,
    to_render_json,
)
from rm_core.inputs.conversations import ChatJson
from serve.api import error_responses
from serve.api.routes.judging import judge_answers, judge_pairs
from serve.api.routes.results import (
    build_envelope,
    build_error,
    build_item,
    compute_ranks,
    parse_each,
    try_parse,
)
from serve.api.routes.turns import score_turns
from serve.api.routing import JsonRoute, ServiceDep, SettingsDep
from serve.api.schemas import (
    CompareRequest,
    CompareResponse,
    RankRequest,
    RankResponse,
    RenderRequest,
    RenderResponse,
    ScoreRequest,
)
from serve.scoring.tokenization import check_num_conversations, check_num_messages
from serve.telemetry.logging import current_request, generate_id

router = APIRouter(
    tags=["scoring"], responses=error_responses.build_error_docs(), route_class=JsonRoute
)


async def score(body: ScoreRequest, service: ServiceDep) -> JSONResponse:
    """Handle `POST /v1/score`, which `serve.api.compat.shared_paths` routes here."""
    if body.turns == "all":
        return await score_turns(body, service)
    conversations = body.get_conversations()
    scores = await service.score(
        body.model,
        conversations,
        body.truncation,
        body.priority,
        context=current_request(),
        aggregation=body.aggregation,
    )
    results = [
        {"index": i, **build_item(r, body.aggregation)} for i, r in enumerate(scores.results)
    ]
    if body.is_single and "reward" in results[0]:
        # A published client reads the reward from this field.
        results[0]["score"] = results[0]["reward"]
    return JSONResponse({**build_envelope("score", scores), "results": results})


@router.post("/v1/compare", response_model=CompareResponse, summary="Compare preference pairs")
async def compare(body: CompareRequest, service: ServiceDep, settings: SettingsDep) -> JSONResponse:
    """Return margin and probability of each pair, and the share of pairs with margin > 0."""
    if service.resolve_model(body.model).encoder.kind == "judge":
        return await judge_pairs(body, service)
    check_num_conversations(
        2 * len(body.pairs), settings.max_conversations, "conversations (two a pair)"
    )
    parsed = await parse_each(parse_pair, body.pairs, settings.max_messages)
    sides = [
        add_tools(side, body.tools)
        for pair in parsed
        if not isinstance(pair, ScoreError)
        for side in pair
    ]
    scores = await service.score(
        body.model,
        sides,
        body.truncation,
        body.priority,
        context=current_request(),
        aggregation=body.aggregation,
    )
    rewards = iter(scores.results)
    results: list[dict[str, Any]] = []
    for index, pair in enumerate(parsed):
        comparison = (
            build_error(pair)
            if isinstance(pair, ScoreError)
            else _build_comparison(next(rewards), next(rewards))
        )
        results.append({"index": index, **comparison})
    margins = [result["margin"] for result in results if "margin" in result]
    accuracy = sum(margin > 0 for margin in margins) / len(margins) if margins else None
    return JSONResponse(
        {**build_envelope("compare", scores), "results": results, "accuracy": accuracy}
    )


@router.post("/v1/rank", response_model=RankResponse, summary="Rank answers to one prompt")
async def rank(body: RankRequest, service: ServiceDep, settings: SettingsDep) -> JSONResponse:
    """Return the answers in the order given, each with its rank; equal rewards share a rank."""
    check_num_conversations(len(body.responses), settings.max_conversations, "responses")
    prompt: Chat | ScoreError | None = check_num_messages(body.prompt, settings.max_messages)
    if prompt is None:
        prompt = try_parse(parse_prompt_chat, body.prompt)
    joined: list[ChatJson | ScoreError]
    if isinstance(prompt, ScoreError):
        joined = [prompt] * len(body.responses)
    else:
        join_response = functools.partial(join_chat, prompt)
        joined = await parse_each(join_response, body.responses, settings.max_messages)
    if service.resolve_model(body.model).encoder.kind == "judge":
        return await judge_answers(body, service, joined)
    conversations = [add_tools(c, body.tools) for c in joined if not isinstance(c, ScoreError)]
    scores = await service.score(
        body.model,
        conversations,
        body.truncation,
        body.priority,
        context=current_request(),
        aggregation=body.aggregation,
    )
    rewards = iter(scores.results)
    items = [item if isinstance(item, ScoreError) else next(rewards) for item in joined]
    ranks = compute_ranks([item.reward for item in items if isinstance(item, Reward)])
    results = [
        {"index": index, **build_item(item, body.aggregation)}
        | ({"rank": ranks[item.reward]} if isinstance(item, Reward) else {})
        for index, item in enumerate(items)
    ]
    best = next((result["index"] for result in results if result.get("rank") == 1), None)
    return JSONResponse({**build_envelope("rank", scores), "results": results, "best_index": best})


@router.post("/v1/render", response_model=RenderResponse, summary="Show what would be scored")
async def render(body: RenderRequest, service: ServiceDep) -> JSONResponse:
    """Return text, token ids and readout position of each conversation, without scoring."""
    conversations = body.get_conversations()
    context = current_request()
    model, encoded = await service.encode(body.model, conversations, body.truncation, context)
    results: list[dict[str, Any]] = []
    for index, item in enumerate(encoded):
        result = to_render_json(item) if isinstance(item, Encoded) else build_error(item)
        if body.offsets and isinstance(item, Encoded):
            result["offsets"] = await model.compute_offsets(item, context.client)
        results.append({"index": index, **result})
    return JSONResponse(
        {
            "id": generate_id("render"),
            "object": "list",
            "model": model.settings.alias,
            "results": results,
            "template_sha256": model.encoder.template_sha256,
        }
    )


def _build_comparison(chosen: Reward | ScoreError, rejected: Reward | ScoreError) -> dict[str, Any]:
    for side, result in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(result, ScoreError):
            return build_error(ScoreError(result.code, f"`{side}`: {result.message}"))
    assert isinstance(chosen, Reward)
    assert isinstance(rejected, Reward)
    margin = chosen.reward - rejected.reward
    comparison: dict[str, Any] = {
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "margin": margin,
        "probability": sigmoid(margin),
        "truncated": chosen.truncated or rejected.truncated,
    }
    if warnings := list(dict.fromkeys((*chosen.warnings, *rejected.warnings))):
        comparison["warnings"] = warnings
    return comparison
