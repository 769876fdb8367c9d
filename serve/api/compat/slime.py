"""slime's remote reward model: one answer per request; the response body is the bare reward.

A prompt is messages, a text in a chat template (the reward model's own, or the policy's with the
setting `policy_template`), or plain text, which becomes the user's turn.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from rm_core import PrerenderedReader, PrerenderedText, join, read_turns, strip_end
from serve.api.compat.common import (
    INPUT_HEADER,
    AggregationInQuery,
    CompatBody,
    MessageList,
    ModelInQuery,
    ScoringOptions,
    build_response,
    compute_rewards,
    create_router,
)
from serve.api.routing import ServiceDep, SettingsDep
from serve.config.settings import PolicyTemplate

router = create_router("slime")

_HINT = "; or name the policy's template in the service's setting `policy_template`"


class SampleBody(CompatBody):
    """A prompt and its answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "2+2?", "response": "4", "label": "4"}]}
    )
    model: str | None = None
    prompt: str | MessageList = Field(description="text or messages")
    response: str = Field(description="the policy's response; trailing end markers are removed")
    label: Any = Field(default=None, description="ignored")


@router.post("/remote_rm", summary="Score as slime's remote reward model")
async def remote_rm(
    body: SampleBody,
    service: ServiceDep,
    settings: SettingsDep,
    model: ModelInQuery = None,
    aggregation: AggregationInQuery = "last",
) -> JSONResponse:
    """Return the raw reward, a bare number; of a step model, the aggregate of the steps."""
    name = model if model is not None else body.model
    item, input_format = _item(
        body, service.resolve_model(name).encoder.prerendered_reader, settings.policy_template
    )
    options = ScoringOptions(hint=_HINT, aggregation=aggregation)
    scored = await compute_rewards(service, name, [item], options)
    if input_format:
        scored.headers[INPUT_HEADER] = input_format
    return build_response(scored.results[0].reward, scored)


def _item(
    body: SampleBody, reader: PrerenderedReader, policy: PolicyTemplate
) -> tuple[object, str | None]:
    """Return the item to score, and its input format, unless the text itself determines it."""
    if not isinstance(body.prompt, str):
        return join(body.prompt, strip_end(body.response)), "conversation"
    text = body.prompt + body.response
    if not reader.is_templated(body.prompt):
        turns = join(body.prompt, strip_end(body.response))
        return turns, "conversation:prompt-as-user"
    if policy == "none":
        return PrerenderedText(text, close=True), None
    return read_turns(text, body.prompt, policy), f"conversation:from-{policy}"
