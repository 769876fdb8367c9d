"""`/v1/compare` and `/v1/rank` of a judge, which compares two answers and gives no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fastapi.responses import JSONResponse

from rm_core import (
    JudgeAnswer,
    RankedAnswer,
    ScoreError,
    Verdict,
    expand_orders,
    merge_orders,
    pair_answers,
    parse_judge_answer,
    parse_judge_pair,
    rank_answers,
    sigmoid,
)
from rm_core.inputs.conversations import ChatJson
from serve.api.routes.results import (
    build_comparisons,
    build_error,
    build_ranking,
    fill_in,
    parse_each,
    score_items,
    try_parse,
)
from serve.api.schemas import CompareRequest, RankRequest
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations


async def judge_pairs(body: CompareRequest, service: ScoringService) -> JSONResponse:
    """Return the verdict on each pair, and the share of pairs with margin > 0."""
    both_orders, limits = body.orders == "both", service.settings
    check_num_conversations(
        (1 + both_orders) * len(body.pairs), limits.max_conversations, "orders of pairs"
    )
    pairs = await parse_each(parse_judge_pair, body.pairs, limits.max_messages)
    orders = expand_orders(pairs, both_orders=both_orders)
    scores = await score_items(body, service, orders, ("judge",))
    verdicts = merge_orders(pairs, scores.results, both_orders=both_orders)
    return build_comparisons(scores, [_build_comparison(verdict) for verdict in verdicts])


async def judge_answers(
    body: RankRequest, service: ScoringService, joined: Sequence[ChatJson | ScoreError]
) -> JSONResponse:
    """Compare every pair of answers in both orders, and rank them by their mean margin.

    `joined` has the prompt with each answer, or the answer's error.
    """
    if len(joined) < 2:
        raise BadRequestError(
            f"`responses` has {len(joined)} answer(s), and a judge compares at least 2; give more"
        )
    limits = service.settings
    check_num_conversations(
        len(joined) * (len(joined) - 1),
        limits.max_conversations,
        "orders of pairs (every pair of answers in both orders)",
    )
    readable = [item for item in joined if not isinstance(item, ScoreError)]
    read = fill_in(joined, await parse_each(parse_judge_answer, readable, limits.max_messages))
    answers = _share_prompts([item for item in read if isinstance(item, JudgeAnswer)])
    pairs = [try_parse(pair_answers, *pair) for pair in combinations(answers, 2)]
    scores = await score_items(body, service, expand_orders(pairs), ("judge",))
    verdicts = merge_orders(pairs, scores.results)
    ranked = rank_answers(len(answers), verdicts) if len(answers) > 1 else [_ALONE]
    items = fill_in(read, ranked)
    return build_ranking(scores, [_build_answer(item, len(answers)) for item in items])


_ALONE = ScoreError(
    "invalid_conversation",
    "no other answer can be read, so a judge has nothing to compare this one with; correct the "
    "others",
)


def _share_prompts(answers: Sequence[JudgeAnswer]) -> list[JudgeAnswer]:
    """Return answers whose equal prompts are one object, so that pairs of them cost little."""
    shared: list[JudgeAnswer] = []
    for answer in answers:
        if shared and answer.prompt == shared[-1].prompt:
            answer = answer._replace(prompt=shared[-1].prompt)
        shared.append(answer)
    return shared


def _build_comparison(verdict: Verdict | ScoreError) -> dict[str, Any]:
    if isinstance(verdict, ScoreError):
        return build_error(verdict)
    comparison: dict[str, Any] = {
        "probability": sigmoid(verdict.margin),
        "margin": verdict.margin,
        "chosen_reward": None,
        "rejected_reward": None,
        "orders": [{"log_odds": log_odds, "label_mass": mass} for log_odds, mass in verdict.orders],
        "consistent": verdict.is_consistent,
        "num_tokens": verdict.num_tokens,
    }
    if verdict.warnings:
        comparison["warnings"] = list(verdict.warnings)
    return comparison


def _build_answer(item: RankedAnswer | ScoreError, num_answers: int) -> dict[str, Any]:
    if isinstance(item, ScoreError):
        return build_error(item)
    answer: dict[str, Any] = {"reward": item.reward, "num_comparisons": item.num_comparisons}
    warnings = list(item.warnings)
    if item.failure is not None:
        failed = (
            f"{item.num_failures} of {num_answers - 1} comparisons failed and are left out of the "
            f"reward: {item.failure.message}"
        )
        warnings.insert(0, failed)
    if warnings:
        answer["warnings"] = warnings
    return answer
