"""`POST /v1/score` with `models`: several models score the same conversations side by side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fastapi.responses import JSONResponse

from rm_core import InputError, NotReadyError, OverloadedError, RewardError, ScoreError
from serve.api.routes.results import build_error, build_usage, check_options
from serve.api.schemas import ScoreRequest
from serve.errors import BadRequestError, ModelAsleepError
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations
from serve.telemetry.logging import RequestContext, current_request, generate_id


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one model made of the conversations."""

    results: Sequence[Mapping[str, Any]]  # fields of each conversation's result
    scores: ScoreResult | None = None  # the scores; None if the model failed as a whole
    failure: RewardError | None = None  # why it failed


ScoreOne: TypeAlias = Callable[
    [ScoreRequest, ScoringService, str | None, RequestContext],
    Awaitable[tuple[ScoreResult, list[dict[str, Any]]]],
]
"""Scores the conversations of a request with one model; see `score_with_model`."""


async def score_with_models(
    body: ScoreRequest, service: ScoringService, score_one: ScoreOne
) -> JSONResponse:
    """Return the reward of each model for each conversation, and their weighted sum.

    A model that fails alone, as one that sleeps, leaves an error in the results. A full queue
    refuses the request, whose other rewards are then in the cache.

    Raises:
        UnknownModelError: some models are not served.
        WrongKindError: a model is a judge.
        BadRequestError: no model reads an option, a model has no calibration, or the sum is too
            large.
        RewardError: all models failed; this is the first one's error.
    """
    assert body.models is not None
    models = service.resolve_models(body.models)
    for model in models:
        model.require_kind(*(("classifier",) if body.turns == "all" else ("classifier", "step")))
    check_options(body, *models)
    num_conversations = len(body.get_conversations())
    check_num_conversations(
        len(models) * num_conversations,
        service.settings.max_conversations,
        "conversations (one a model)",
    )
    request = current_request()
    contexts = [replace(request) for _ in models]
    named = list(zip(body.models, contexts, strict=True))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _score_alone(score_one(body, service, name, context), num_conversations)
                )
                for name, context in named
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        _merge_contexts(request, contexts)
    answers = {name: task.result() for name, task in zip(body.models, tasks, strict=True)}
    failures_ = [answer.failure for answer in answers.values() if answer.failure is not None]
    if len(failures_) == len(answers):
        raise failures_[0]
    if body.calibrated:
        _require_calibrations(body, answers)
    scored = {name: a.scores for name, a in answers.items() if a.scores is not None}
    return JSONResponse(
        {
            "id": generate_id("score"),
            "object": "list",
            "models": body.models,
            "usage": {name: build_usage(scores) for name, scores in scored.items()},
            "fingerprints": {n: scores.fingerprint.as_dict() for n, scores in scored.items()},
            "results": [
                {"index": i, **_merge_results(body, {n: a.results[i] for n, a in answers.items()})}
                for i in range(num_conversations)
            ],
        }
    )


async def _score_alone(
    scoring: Awaitable[tuple[ScoreResult, list[dict[str, Any]]]], num_conversations: int
) -> _Answer:
    try:
        scores, results = await scoring
    except RewardError as error:
        # A full queue has room soon: the request is refused whole, so that it is sent again.
        is_busy = isinstance(error, OverloadedError) and not isinstance(
            error, NotReadyError | ModelAsleepError
        )
        if is_busy or isinstance(error, InputError):
            raise
        result = build_error(ScoreError.from_exception(error))
        return _Answer([result] * num_conversations, failure=error)
    return _Answer(results, scores)


def _merge_contexts(request: RequestContext, contexts: Sequence[RequestContext]) -> None:
    """Sum the counts of the models in the request's record; the slowest gives each duration."""
    request.model = ",".join(context.model for context in contexts if context.model) or None
    for name in (
        *("num_conversations", "num_errors"),
        *("num_tokens", "num_computed_tokens", "num_cached_tokens"),
    ):
        setattr(request, name, sum(getattr(context, name) for context in contexts))
    for name in ("tokenize_s", "queue_duration_s", "inference_s"):
        setattr(request, name, max(getattr(context, name) for context in contexts))


def _require_calibrations(body: ScoreRequest, answers: Mapping[str, _Answer]) -> None:
    for name in body.combine or {}:
        scores = answers[name].scores
        if scores is not None and scores.calibration is None:
            raise BadRequestError(
                f"model {name!r} has no calibration for its revision and this `aggregation`; set "
                "its `calibration` to a file of `skyreward calibrate`, or leave out `calibrated`"
            )


def _merge_results(body: ScoreRequest, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of one conversation from the result of each model."""
    merged: dict[str, Any] = {
        "rewards": {name: r["reward"] for name, r in results.items() if "reward" in r}
    }
    calibrated = {
        name: r["calibrated_reward"] for name, r in results.items() if "calibrated_reward" in r
    }
    if calibrated:
        merged["calibrated_rewards"] = calibrated
    parts = calibrated if body.calibrated else merged["rewards"]
    if body.combine is not None and body.combine.keys() <= parts.keys():
        low, high = body.clip or (-math.inf, math.inf)
        merged["reward"] = sum_rewards(
            weight * min(max(parts[name], low), high) for name, weight in body.combine.items()
        )
    if errors := {name: r["error"] for name, r in results.items() if "error" in r}:
        merged["errors"] = errors
    merged["details"] = {
        name: {key: value for key, value in result.items() if key not in _MERGED}
        for name, result in results.items()
        if result.keys() - _MERGED
    }
    return merged


def sum_rewards(terms: Iterable[float]) -> float:
    """Return the exact sum of weighted rewards, rounded once, if it is a finite number."""
    try:
        total = math.fsum(terms)
    except (OverflowError, ValueError):  # ValueError: terms are infinite with both signs
        total = math.inf
    if not math.isfinite(total):
        raise BadRequestError(
            "the weighted sum of the rewards is too large for a double; give smaller weights"
        )
    return total


_MERGED = frozenset(("reward", "calibrated_reward", "error"))
