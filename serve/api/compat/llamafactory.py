"""LLaMA-Factory's score evaluation: texts that its trainer rendered, in the field `messages`."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from rm_core import PrerenderedText
from serve.api.compat.common import (
    EXAMPLE_TEXT,
    CompatBody,
    ModelInQuery,
    ScoringOptions,
    TextList,
    build_response,
    compute_rewards,
    create_router,
    resolve_model_name,
)
from serve.api.error_responses import truncate_for_message
from serve.api.routing import ServiceDep
from serve.errors import EmptyInputError
from serve.telemetry.logging import generate_id

router = create_router("LLaMA-Factory")


class EvaluationBody(CompatBody):
    """Texts to score; `model` may be any name if only one model is served, as in LLaMA-Factory."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "model", "messages": [EXAMPLE_TEXT]}]}
    )
    model: str | None = None
    messages: TextList = Field(description="conversations, rendered with the chat template")
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="keep at most this number of first tokens; default: reject longer texts",
    )


@router.post("/v1/score/evaluation", summary="Score as LLaMA-Factory's API does")
async def evaluation(
    body: EvaluationBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """Return raw rewards, in the order of `messages`."""
    if not body.messages:
        raise EmptyInputError("Invalid request")
    name = resolve_model_name(service, model, body.model)
    options = ScoringOptions("right" if body.max_length else "error", body.max_length)
    # The client's rendering is scored as it is, with all text that follows the answer.
    scored = await compute_rewards(
        service, name, [PrerenderedText(text) for text in body.messages], options
    )
    content = {
        "id": generate_id("scoreval"),
        "object": "score.evaluation",
        "model": truncate_for_message(body.model) if body.model else scored.model,
        "scores": [result.reward for result in scored.results],
    }
    return build_response(content, scored)
