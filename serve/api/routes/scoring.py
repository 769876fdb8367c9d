"""The native scoring routes: score, compare, rank, render, steps."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from rm_core import (
    Chat,
    Reward,
    ScoreError,
    add_tools,
    join_chat,
    parse_judge_pair,
    parse_pair,
    parse_prompt_chat,
    parse_step_item,
    sigmoid,
    to_render_json,
)
from rm_core.config import Kind
from rm_core.inputs.conversations import ChatJson
from serve.api import error_responses
from serve.api.routes.judging import judge_answers, judge_pairs
from serve.api.routes.results import (
    build_comparisons,
    build_error,
    build_item,
    build_ranking,
    build_response,
    check_options,
    fill_in,
    parse_each,
    score_items,
    try_parse,
)
from serve.api.routes.several_models import score_with_models
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
    StepsRequest,
    StepsResponse,
)
from serve.config.settings import Settings
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations, check_num_messages
from serve.telemetry.logging import RequestContext, current_request, generate_id

router = APIRouter(
    tags=["scoring"], responses=error_responses.build_error_docs(), route_class=JsonRoute
)


async def score(body: ScoreRequest, service: ServiceDep) -> JSONResponse:
    """Handle `POST /v1/score`, which `serve.api.compat.shared_paths` routes here."""
    if body.models is not None:
        return await score_with_models(body, service, score_with_model)
    model = service.resolve_model(body.model)
    model.require_kind("classifier", "step")
    check_options(body, model)
    scores, items = await score_with_model(body, service, body.model, current_request())
    if body.is_single and "reward" in items[0]:
        # A published client reads the reward from this field.
        items[0]["score"] = items[0]["reward"]
    return build_response("score", scores, items)


async def score_with_model(
    body: ScoreRequest, service: ScoringService, name: str | None, context: RequestContext
) -> tuple[ScoreResult, list[dict[str, Any]]]:
    """Return the scores, and the fields of each conversation's result."""
    if body.turns == "all":
        return await score_turns(body, service, name, context)
    scores = await service.score(
        name,
        body.get_conversations(),
        body.truncation,
        body.priority,
        context=context,
        aggregation=body.aggregation,
    )
    return scores, [build_item(r, body.aggregation, scores.calibration) for r in scores.results]


@router.post("/v1/compare", response_model=CompareResponse, summary="Compare preference pairs")
async def compare(body: CompareRequest, service: ServiceDep, settings: SettingsDep) -> JSONResponse:
    """Return margin and probability of each pair, and the share of pairs with margin > 0."""
    model = service.resolve_model(body.model)
    check_options(body, model)
    if model.encoder.kind == "judge":
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
    scores = await score_items(body, service, sides)
    rewards = iter(scores.results)
    items = [
        build_error(pair)
        if isinstance(pair, ScoreError)
        else _build_comparison(next(rewards), next(rewards))
        for pair in parsed
    ]
    return build_comparisons(scores, items)


@router.post("/v1/rank", response_model=RankResponse, summary="Rank answers to one prompt")
async def rank(body: RankRequest, service: ServiceDep, settings: SettingsDep) -> JSONResponse:
    """Return the answers in the order given, each with its rank; equal rewards share a rank."""
    model = service.resolve_model(body.model)
    check_options(body, model)
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
    if model.encoder.kind == "judge":
        return await judge_answers(body, service, joined)
    conversations = [add_tools(c, body.tools) for c in joined if not isinstance(c, ScoreError)]
    scores = await score_items(body, service, conversations)
    items = [
        build_item(result, body.aggregation, scores.calibration)
        for result in fill_in(joined, scores.results)
    ]
    return build_ranking(scores, items)


@router.post("/v1/render", response_model=RenderResponse, summary="Show what would be scored")
async def render(body: RenderRequest, service: ServiceDep, settings: SettingsDep) -> JSONResponse:
    """Return text, token ids and readout position of each input, without scoring."""
    kinds: tuple[Kind, ...] = ("classifier", "step")
    if body.pairs is not None:
        kinds = ("judge",)
    elif body.items is not None:
        kinds = ("step",)
    model = service.resolve_model(body.model)
    model.require_kind(*kinds)
    check_options(body, model)
    inputs = await _read_inputs(body, settings)
    readable = [item for item in inputs if not isinstance(item, ScoreError)]
    context = current_request()
    _, encoded = await service.encode(body.model, readable, body.truncation, context, kinds=kinds)
    results: list[dict[str, Any]] = []
    for rendering in fill_in(inputs, encoded):
        if isinstance(rendering, ScoreError):
            results.append(build_error(rendering))
            continue
        results.append(to_render_json(rendering))
        if body.offsets:
            results[-1]["offsets"] = await model.compute_offsets(rendering, context.client)
    if body.pairs is not None:
        both_orders = zip(results[::2], results[1::2], strict=True)
        results = [
            given if "error" in given else {**given, "swapped": swapped}
            for given, swapped in both_orders
        ]
    return JSONResponse(
        {
            "id": generate_id("render"),
            "object": "list",
            "model": model.settings.alias,
            "results": [{"index": index, **result} for index, result in enumerate(results)],
            "template_sha256": model.encoder.template_sha256,
        }
    )


@router.post("/v1/steps", response_model=StepsResponse, summary="Score the steps of solutions")
async def score_steps(
    body: StepsRequest, service: ServiceDep, settings: SettingsDep
) -> JSONResponse:
    """Return the reward of each step of each solution, and their aggregate."""
    # Before the items are read: of a model of another kind, that is the error.
    model = service.resolve_model(body.model)
    model.require_kind("step")
    check_options(body, model)
    check_num_conversations(len(body.items), settings.max_conversations, "items")
    parsed = await parse_each(parse_step_item, body.items, settings.max_messages)
    readable = [item for item in parsed if not isinstance(item, ScoreError)]
    scores = await score_items(body, service, readable, ("step",))
    items = [
        build_item(result, body.aggregation, scores.calibration)
        for result in fill_in(parsed, scores.results)
    ]
    for item in items:
        if "error" not in item:
            del item["truncated"]  # nothing is cut off
            item["num_steps"] = len(item["step_rewards"])
    return build_response("steps", scores, items)


async def _read_inputs(body: RenderRequest, settings: Settings) -> list[Any]:
    """Return what the model reads, or errors: of a pair, both orders one after the other."""
    limit = settings.max_conversations
    if body.items is not None:
        check_num_conversations(len(body.items), limit, "items")
        return await parse_each(parse_step_item, body.items, settings.max_messages)
    if body.pairs is None:
        return body.get_conversations()
    check_num_conversations(2 * len(body.pairs), limit, "orders of pairs")
    pairs = await parse_each(parse_judge_pair, body.pairs, settings.max_messages)
    return [
        order
        for pair in pairs
        for order in ((pair, pair) if isinstance(pair, ScoreError) else (pair, pair.swap()))
    ]


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
