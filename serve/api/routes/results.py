"""What the native scoring routes share: parts of responses, and items that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from rm_core import Aggregation, InvalidConversationError, Reward, ScoreError
from serve.scoring.served_model import ScoreResult
from serve.telemetry.logging import generate_id

P = ParamSpec("P")
T = TypeVar("T")


def build_envelope(kind: str, scores: ScoreResult) -> dict[str, Any]:
    """Return the fields of a response that describe the whole request."""
    return {
        "id": generate_id(kind),
        "object": "list",
        "model": scores.model,
        "usage": {
            "num_tokens": scores.num_tokens,
            "num_computed_tokens": scores.num_computed_tokens,
            "num_cached_tokens": scores.num_cached_tokens,
        },
        "fingerprint": scores.fingerprint.as_dict(),
    }


def build_item(result: Reward | ScoreError, aggregation: Aggregation = "last") -> dict[str, Any]:
    """Return the fields of one conversation's result, and `aggregation` of a step model's."""
    if isinstance(result, ScoreError):
        return build_error(result)
    item: dict[str, Any] = {
        "reward": result.reward,
        "num_tokens": result.num_tokens,
        "truncated": result.truncated,
    }
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
