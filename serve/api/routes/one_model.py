"""The conversations of `POST /v1/score`, scored by one model."""

from __future__ import annotations

from typing import Any

from serve.api.routes.results import build_item
from serve.api.routes.turns import score_turns
from serve.api.schemas import ScoreRequest
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.telemetry.logging import RequestContext


async def score_with_model(
    body: ScoreRequest, service: ScoringService, name: str | None, context: RequestContext
) -> tuple[ScoreResult, list[dict[str, Any]]]:
    """Return the scores, and the fields of each conversation's result.

    Args:
        body: the conversations and options.
        service: scores them.
        name: name of the model; see `ScoringService.resolve_model`.
        context: see `ScoringService.score`.
    """
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
