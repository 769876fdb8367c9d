"""What the native scoring routes share: checks of bodies, and parts of responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from rm_core import Aggregation, InvalidConversationError, Reward, ScoreError
from rm_core.calibration import Calibration
from rm_core.config import Kind
from serve.api.schemas import CompareRequest, RankRequest, StepsRequest
from serve.errors import BadRequestError
from serve.scoring.served_model import KIND_NAMES, ScoreResult, ServedModel
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_messages
from serve.telemetry.logging import current_request, generate_id

P = ParamSpec("P")
T = TypeVar("T")

# Other requests get their turn after so much work on one request: many items may take seconds.
_YIELD_AFTER_S = 0.01
_FIELDS = ("prompt", "chosen", "rejected")  # of items, those that may be messages
# Options that a model of a kind does not read.
_UNREAD: Mapping[Kind, Sequence[str]] = {
    "classifier": ("aggregation", "orders"),
    "step": ("truncation", "orders", "tools"),
    "judge": ("truncation", "aggregation", "tools"),
}


def check_options(body: BaseModel, *models: ServedModel) -> None:
    """Refuse a value other than the default of an option that no model reads."""
    kind = models[0].encoder.kind
    fields = type(body).model_fields
    for name in _UNREAD[kind]:
        if any(name not in _UNREAD[model.encoder.kind] for model in models):
            continue
        if name in fields and getattr(body, name) != fields[name].default:
            reason = ", since nothing is cut off" if name == "truncation" else ""
            raise BadRequestError(
                f"{KIND_NAMES[kind]} does not read `{name}`{reason}; leave the field out"
            )


async def score_items(
    body: CompareRequest | RankRequest | StepsRequest,
    service: ScoringService,
    items: Sequence[object],
    kinds: Sequence[Kind] = ("classifier", "step"),
) -> ScoreResult:
    """Return the scores of what the items of a body are, with the options of the body."""
    return await service.score(
        body.model,
        items,
        body.truncation,
        body.priority,
        context=current_request(),
        kinds=kinds,
        aggregation=body.aggregation,
    )


def build_response(
    kind: str, scores: ScoreResult, items: Iterable[Mapping[str, Any]], **fields: object
) -> JSONResponse:
    """Return the response of a request: its items with their indices, and further fields."""
    return JSONResponse(
        {
            "id": generate_id(kind),
            "object": "list",
            "model": scores.model,
            "usage": build_usage(scores),
            "fingerprint": scores.fingerprint.as_dict(),
            "results": [{"index": index, **item} for index, item in enumerate(items)],
            **fields,
        }
    )


def build_comparisons(scores: ScoreResult, items: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """Return the response of `/v1/compare`, with the share of pairs with margin > 0."""
    margins = [item["margin"] for item in items if "margin" in item]
    accuracy = sum(margin > 0 for margin in margins) / len(margins) if margins else None
    return build_response("compare", scores, items, accuracy=accuracy)


def build_ranking(scores: ScoreResult, items: Sequence[dict[str, Any]]) -> JSONResponse:
    """Return the response of `/v1/rank`: items with the ranks of their rewards."""
    ranks = compute_ranks([item["reward"] for item in items if "reward" in item])
    for item in items:
        if "reward" in item:
            item["rank"] = ranks[item["reward"]]
    best = next((index for index, item in enumerate(items) if item.get("rank") == 1), None)
    return build_response("rank", scores, items, best_index=best)


def build_usage(scores: ScoreResult) -> dict[str, int]:
    """Return the numbers of tokens of a response."""
    return {
        "num_tokens": scores.num_tokens,
        "num_computed_tokens": scores.num_computed_tokens,
        "num_cached_tokens": scores.num_cached_tokens,
    }


def build_item(
    result: Reward | ScoreError,
    aggregation: Aggregation = "last",
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Return the fields of one conversation's result, and `aggregation` of a step model's."""
    if isinstance(result, ScoreError):
        return build_error(result)
    item: dict[str, Any] = {"reward": result.reward}
    if calibration is not None:
        item["calibrated_reward"] = calibration.apply(result.reward)
    item |= {"num_tokens": result.num_tokens, "truncated": result.truncated}
    if result.step_rewards:
        item["step_rewards"] = list(result.step_rewards)
        item["aggregation"] = aggregation
    if result.warnings:
        item["warnings"] = list(result.warnings)
    return item


def build_error(error: ScoreError) -> dict[str, Any]:
    """Return the field of an item that could not be scored."""
    return {"error": {"code": error.code, "message": error.message}}


def compute_ranks(rewards: Sequence[float]) -> dict[float, int]:
    """Return the rank of each reward; equal rewards share the best rank."""
    ranks: dict[float, int] = {}
    for rank, reward in enumerate(sorted(rewards, reverse=True), 1):
        ranks.setdefault(reward, rank)
    return ranks


def try_parse(parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ScoreError:
    """Return what `parse` returns, or the error of an item that it refuses."""
    try:
        return parse(*args, **kwargs)
    except InvalidConversationError as error:
        return ScoreError.from_exception(error)


async def parse_each(
    parse: Callable[[Any], T], items: Iterable[object], max_messages: int
) -> list[T | ScoreError]:
    """Return what `parse` makes of each item, or the item's error; yields to other requests.

    An item that `parse` refuses raises `InvalidConversationError` there; one with a longer list of
    messages than the setting `max_messages` is not parsed.
    """
    clock = asyncio.get_running_loop().time
    parsed: list[T | ScoreError] = []
    stop = clock() + _YIELD_AFTER_S
    for item in items:
        error = _find_long_list(item, max_messages)
        parsed.append(try_parse(parse, item) if error is None else error)
        if clock() > stop:
            await asyncio.sleep(0)
            stop = clock() + _YIELD_AFTER_S
    return parsed


def fill_in(parsed: Iterable[object | ScoreError], results: Iterable[T]) -> list[T | ScoreError]:
    """Return the results of the items that could be parsed, and the errors of the others."""
    remaining = iter(results)
    return [item if isinstance(item, ScoreError) else next(remaining) for item in parsed]


def _find_long_list(item: object, max_messages: int) -> ScoreError | None:
    """Return the error of an item, or of its prompt or answers, that has too many messages."""
    fields = [item.get(name) for name in _FIELDS] if isinstance(item, dict) else []
    errors = (check_num_messages(value, max_messages) for value in (item, *fields))
    return next((error for error in errors if error is not None), None)
