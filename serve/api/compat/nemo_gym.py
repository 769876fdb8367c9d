"""NeMo-Gym's resources server: `/verify` scores a rollout, `/compare` the answers to one prompt.

Rollouts are in the format of OpenAI's Responses API. A row of the data may hold options in the
field `skyreward`, which agents pass on. The other routes are those that agents call around a
rollout, and that NeMo-Gym calls at the end of a collection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic.config import JsonDict

from rm_core import Aggregation, RewardError, ScoreError, Truncation, join, parse_arguments
from rm_core.inputs.responses_items import read_output, read_rollout
from serve.api.compat.common import (
    MODEL_HEADER,
    VERSION_HEADER,
    CompatBody,
    MessageList,
    ModelInQuery,
    ScoringOptions,
    build_response,
    compute_rewards,
    create_router,
    to_header_value,
)
from serve.api.error_responses import build_exception
from serve.api.routes import scoring
from serve.api.routes.several_models import sum_rewards
from serve.api.routing import ServiceDep, SettingsDep
from serve.api.schemas import RankRequest

router: APIRouter = create_router("NeMo-Gym")
probes = APIRouter(tags=["NeMo-Gym"])
"""Routes without a body."""

_TASK = "_ng_task_index"
_QUESTION: JsonDict = {"role": "user", "content": "2+2?"}
_STATISTICS = (
    ("mean", statistics.fmean),
    ("max", max),
    ("min", min),
    ("median", statistics.median),
)
_OUTPUT: JsonDict = {
    "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}
    ]
}


class RowOptions(BaseModel):
    """Options in a row of the data."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(default=None, description="a served model")
    models: dict[str, FiniteFloat] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="weight of each of several served models: `reward` is the weighted sum, and "
        "`reward_components` has the raw rewards",
    )
    truncation: Truncation = "error"
    aggregation: Aggregation = "last"
    on_error: Literal["raise", "judge_failed"] = Field(
        default="raise",
        description="`judge_failed`: a failure is answered with 200, the reward 0 and "
        "`_ng_failure_class`, which keeps the row out of NeMo-Gym's metrics",
    )

    @model_validator(mode="after")
    def _check_names(self) -> RowOptions:
        if self.model is not None and self.models is not None:
            raise ValueError("`model` and `models` exclude each other; give one of the two")
        return self


class VerifyBody(CompatBody):
    """A rollout; the answer repeats all of its fields."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"responses_create_params": {"input": [_QUESTION]}, "response": _OUTPUT}]
        },
    )
    responses_create_params: dict[str, Any] = Field(
        description="`input` (text or items), `instructions` and `tools` are read"
    )
    response: dict[str, Any] = Field(description="`output`, a list of items, is read")
    skyreward: RowOptions = RowOptions()


class CompareBody(CompatBody):
    """A conversation and several answers to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"conversation_history": [_QUESTION], "response_objs": [_OUTPUT, _OUTPUT]}]
        }
    )
    conversation_history: MessageList = Field(description="messages before the answers")
    response_objs: MessageList = Field(description="of each answer, `output` is read")
    principle: str | None = Field(default=None, description="ignored; no model here reads one")
    skyreward: RowOptions = RowOptions()


class VerifyAnswer(CompatBody):
    """An answer of `/verify`: its numbers are summarized."""

    model_config = ConfigDict(extra="allow")
    task_index: int = Field(default=0, alias=_TASK, description="answers are grouped by it")


class ResponsesBody(CompatBody):
    """Answers of `/verify`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"verify_responses": [{_TASK: 0, "reward": 1.5}, {"reward": -0.5}]}]
        }
    )
    verify_responses: list[VerifyAnswer] = Field(fail_fast=True)


class SeedBody(CompatBody):
    """A row of the data; nothing is read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{_TASK: 0}]})


@router.post("/verify", summary="Score a rollout of NeMo-Gym")
async def verify(body: VerifyBody, service: ServiceDep) -> JSONResponse:
    """Return the fields of the body and `reward`, with several models `reward_components` too.

    `reward_MODEL` repeats each component, because NeMo-Gym's metrics read top-level numbers only.
    """
    row = body.skyreward
    options = ScoringOptions(truncation=row.truncation, aggregation=row.aggregation)
    names: Sequence[str | None] = [*row.models] if row.models else [row.model]
    sent = body.model_dump(exclude_unset=True)
    try:
        item = read_rollout(body.responses_create_params, body.response)
        scored = await asyncio.gather(
            *(compute_rewards(service, name, [item], options) for name in names)
        )
    except RewardError as error:
        if row.on_error == "raise":
            raise
        message = f"{error.code}: {error}"
        failed = {"_ng_failure_class": "judge_failed", "_ng_failure_judge_error": message}
        return JSONResponse({**sent, "reward": 0.0, **failed})
    rewards = [result.results[0].reward for result in scored]
    content: dict[str, Any] = {"reward": rewards[0]}
    if row.models:
        components = dict(zip(row.models, rewards, strict=True))
        total = sum_rewards(row.models[name] * value for name, value in components.items())
        named = {f"reward_{name}": value for name, value in components.items()}
        content = {"reward": total, "reward_components": components, **named}
    headers = {**scored[0].headers}
    headers[MODEL_HEADER] = to_header_value(", ".join(result.model for result in scored))
    versions = [result.headers.get(VERSION_HEADER, "") for result in scored]
    if any(versions):
        headers[VERSION_HEADER] = ", ".join(versions)
    return JSONResponse({**sent, **content}, headers=headers)


@router.post("/compare", summary="Score the answers to one prompt as NeMo-Gym's genrm_compare does")
async def compare(
    body: CompareBody, service: ServiceDep, settings: SettingsDep, model: ModelInQuery = None
) -> JSONResponse:
    """Return `rewards` in the order of the answers: raw ones, or mean margins of a judge."""
    row = body.skyreward
    name = model if model is not None else row.model
    answers = [read_output(response) for response in body.response_objs]
    history = parse_arguments(body.conversation_history)
    answer: dict[str, Any] = {"rewards": [], "comparison_results": None, "metrics": None}
    if service.resolve_model(name).encoder.kind != "judge":
        items = [join(history, messages, "response_objs") for messages in answers]
        options = ScoringOptions(truncation=row.truncation, aggregation=row.aggregation)
        scored = await compute_rewards(service, name, items, options)
        return build_response({**answer, "rewards": [r.reward for r in scored.results]}, scored)
    request = RankRequest(model=name, prompt=history, responses=answers, truncation=row.truncation)
    ranked = json.loads(bytes((await scoring.rank(request, service, settings)).body))
    for index, result in enumerate(ranked["results"]):
        if error := result.get("error"):
            where = f"input {index} of {len(answers)}"
            raise build_exception(ScoreError(error["code"], error["message"]), where)
    answer["rewards"] = [result["reward"] for result in ranked["results"]]
    headers = {MODEL_HEADER: to_header_value(ranked["model"])}
    if version := ranked["fingerprint"].get("version"):
        headers[VERSION_HEADER] = to_header_value(version)
    return JSONResponse(answer, headers=headers)


@router.post("/seed_session", summary="Begin a rollout of NeMo-Gym")
async def seed_session(_: SeedBody) -> JSONResponse:
    """Return an empty object, since scoring has no state."""
    return JSONResponse({})


@probes.get("/reverify_mode", summary="Say whether rollouts may be verified again")
async def reverify_mode() -> JSONResponse:
    """Return `stateless`: the reward of a rollout depends on nothing else."""
    return JSONResponse("stateless")


@router.post("/aggregate_metrics", summary="Summarize answers of /verify")
async def aggregate_metrics(body: ResponsesBody) -> JSONResponse:
    """Return mean, max, min, median and standard deviation of `reward` and of each component."""
    tasks: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in body.verify_responses:
        tasks[answer.task_index].append(answer.model_extra or {})
    overall = _summarize([answer.model_extra or {} for answer in body.verify_responses])
    groups = [{_TASK: task, **_summarize(rows)} for task, rows in sorted(tasks.items())]
    key = {name: value for name, value in overall.items() if name.startswith("mean/")}
    return JSONResponse(
        {"group_level_metrics": groups, "agent_metrics": overall, "key_metrics": key}
    )


def _summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the statistics of each number that the answers of `/verify` have in common."""
    names = (
        [name for name in rows[0] if name == "reward" or name.startswith("reward_")] if rows else []
    )
    summary: dict[str, float] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(numbers) < len(values):
            continue
        found = {f"{kind}/{name}": compute for kind, compute in _STATISTICS}
        if len(numbers) > 1:
            found[f"std/{name}"] = statistics.stdev
        with contextlib.suppress(OverflowError):  # no float is the result
            summary |= {key: float(compute(numbers)) for key, compute in found.items()}
    return summary
