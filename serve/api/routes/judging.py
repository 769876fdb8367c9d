"""`/v1/compare` and `/v1/rank` of a judge, which compares two answers and gives no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fastapi.responses import JSONResponse

from rm_core import (
    RankedAnswer,
    ScoreError,
    Verdict,
    add_tools,
    build_judge_pair,
    expand_orders,
    merge_orders,
    parse_judge_pair,
    rank_answers,
    sigmoid,
)
from rm_core.inputs.conversations import ChatJson
from serve.api.routes.results import build_envelope, build_error, compute_ranks, try_parse
from serve.api.schemas import CompareRequest, RankRequest
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations
from serve.telemetry.logging import current_request


async def judge_pairs(body: CompareRequest, service: ScoringService) -> JSONResponse:
    """Return the verdict on each pair, and the share of pairs with margin > 0."""
    if body.tools is not None:
        raise BadRequestError("a judge does not read `tools`; leave the field out")
    both_orders = body.orders == "both"
    check_num_conversations(
        (1 + both_orders) * len(body.pairs), service.settings.max_conversations, "orders of pairs"
    )
    pairs = [try_parse(parse_judge_pair, pair) for pair in body.pairs]
    scores = await service.score(
        body.model,
        expand_orders(pairs, both_orders=both_orders),
        body.truncation,
        body.priority,
        context=current_request(),
        kinds=("judge",),
    )
    verdicts = merge_orders(pairs, scores.results, both_orders=both_orders)
    results = [{"index": i, **_build_comparison(v)} for i, v in enumerate(verdicts)]
    margins = [v.margin for v in verdicts if isinstance(v, Verdict)]
    accuracy = sum(margin > 0 for margin in margins) / len(margins) if margins else None
    return JSONResponse(
        {**build_envelope("compare", scores), "results": results, "accuracy": accuracy}
    )


async def judge_answers(
    body: RankRequest, service: ScoringService, joined: Sequence[ChatJson | ScoreError]
) -> JSONResponse:
    """Compare every pair of answers in both orders, and rank them by their mean margin.

    Args:
        body: the request.
        service: scores the pairs.
        joined: the prompt with each answer, or the answer's error.
    """
    answers: list[Any] = [
        add_tools(item, body.tools) for item in joined if not isinstance(item, ScoreError)
    ]
    if len(joined) < 2:
        raise BadRequestError(
            f"`responses` has {len(joined)} answers, and a judge compares at least 2; give more"
        )
    check_num_conversations(
        len(answers) * (len(answers) - 1),
        service.settings.max_conversations,
        "orders of pairs (every pair of answers in both orders)",
    )
    pairs = [try_parse(build_judge_pair, *pair) for pair in combinations(answers, 2)]
    scores = await service.score(
        body.model,
        expand_orders(pairs),
        body.truncation,
        body.priority,
        context=current_request(),
        kinds=("judge",),
    )
    verdicts = merge_orders(pairs, scores.results)
    ranked = iter(rank_answers(len(answers), verdicts) if len(answers) > 1 else [_ALONE])
    items = [item if isinstance(item, ScoreError) else next(ranked) for item in joined]
    ranks = compute_ranks([item.reward for item in items if isinstance(item, RankedAnswer)])
    results = [
        {"index": index, **_build_answer(item, ranks, len(answers))}
        for index, item in enumerate(items)
    ]
    best = next((result["index"] for result in results if result.get("rank") == 1), None)
    return JSONResponse({**build_envelope("rank", scores), "results": results, "best_index": best})


_ALONE = ScoreError(
    "invalid_conversation",
    "no other answer can be read, so a judge has nothing to compare this one with; correct the "
    "others",
)


def _build_comparison(verdict: Verdict | ScoreError) -> dict[str, Any]:
    if isinstance(verdict, ScoreError):
        return build_error(verdict)
    return {
        "probability": sigmoid(verdict.margin),
        "margin": verdict.margin,
        "chosen_reward": None,
        "rejected_reward": None,
        "orders": [{"log_odds": log_odds, "label_mass": mass} for log_odds, mass in verdict.orders],
        "consistent": verdict.is_consistent,
        "num_tokens": verdict.num_tokens,
    }


def _build_answer(
    item: RankedAnswer | ScoreError, ranks: dict[float, int], num_answers: int
) -> dict[str, Any]:
    if isinstance(item, ScoreError):
        return build_error(item)
    answer: dict[str, Any] = {
        "reward": item.reward,
        "rank": ranks[item.reward],
        "num_comparisons": item.num_comparisons,
    }
    if item.failure is not None:
        answer["warnings"] = [
            f"{item.num_failures} of {num_answers - 1} comparisons failed and are left out of the "
            f"reward: {item.failure.message}"
        ]
    return answer
