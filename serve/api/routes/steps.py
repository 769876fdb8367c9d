"""`POST /v1/steps`: the rewards of the steps of solutions, from step models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from rm_core import Aggregation, Reward, ScoreError, parse_step_item
from rm_core.calibration import Calibration
from serve.api import error_responses
from serve.api.routes.results import (
    build_error,
    build_response,
    check_options,
    fill_in,
    parse_each,
)
from serve.api.routing import JsonRoute, ServiceDep, SettingsDep
from serve.api.schemas import StepsRequest, StepsResponse
from serve.scoring.tokenization import check_num_conversations
from serve.telemetry.logging import current_request

router = APIRouter(
    tags=["scoring"], responses=error_responses.build_error_docs(), route_class=JsonRoute
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
    scores = await service.score(
        body.model,
        [item for item in parsed if not isinstance(item, ScoreError)],
        body.truncation,
        body.priority,
        context=current_request(),
        kinds=("step",),
        aggregation=body.aggregation,
    )
    results = fill_in(parsed, scores.results)
    return build_response(
        "steps",
        scores,
        [_build_result(result, body.aggregation, scores.calibration) for result in results],
    )


def _build_result(
    result: Reward | ScoreError, aggregation: Aggregation, calibration: Calibration | None
) -> dict[str, Any]:
    if isinstance(result, ScoreError):
        return build_error(result)
    item: dict[str, Any] = {
        "step_rewards": list(result.step_rewards),
        "reward": result.reward,
        "aggregation": aggregation,
        "num_steps": len(result.step_rewards),
        "num_tokens": result.num_tokens,
    }
    if calibration is not None:
        item["calibrated_reward"] = calibration.apply(result.reward)
    if result.warnings:
        item["warnings"] = list(result.warnings)
    return item
