"""OpenAI's chat completions in the format of NVIDIA's reward models: the content is the reward.

The last message is the assistant's turn to score; nothing is generated. The reward is in the
content, `reward:1.25`, and in the `logprob` of a token `reward`, where NeMo Curator reads it.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, model_validator

from serve.api.compat.common import (
    EXAMPLE_CHAT,
    ChatBody,
    build_response,
    build_usage,
    compute_rewards,
    create_router,
)
from serve.api.routing import ServiceDep
from serve.api.schemas import ModelName
from serve.telemetry.logging import generate_id

router = create_router("NVIDIA NIM")


class CompletionBody(ChatBody):
    """One conversation; sampling parameters are ignored, since nothing is sampled."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": EXAMPLE_CHAT}]})
    model: ModelName = None
    stream: bool | None = None
    n: int | None = None
    functions: list[Any] | None = Field(default=None, description="rejected; send `tools`")

    @model_validator(mode="after")
    def _reject_unsupported_options(self) -> CompletionBody:
        if self.stream:
            raise ValueError("rewards are not streamed; leave `stream` out")
        if self.n not in (None, 1):
            raise ValueError("a conversation has exactly one reward; leave `n` out")
        if self.functions:
            raise ValueError("`functions` is OpenAI's old name and not rendered; send `tools`")
        return self


@router.post("/v1/chat/completions", summary="Score as NVIDIA's reward models do")
async def completions(body: CompletionBody, service: ServiceDep) -> JSONResponse:
    """Return the raw reward of the conversation, as `reward:NUMBER`."""
    scored = await compute_rewards(service, body.model, body.get_conversations())
    reward = scored.results[0].reward
    token = {"token": "reward", "logprob": reward, "bytes": None, "top_logprobs": []}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": f"reward:{reward!r}", "refusal": None},
        "logprobs": {"content": [token], "refusal": None},
        "finish_reason": "stop",
    }
    content = {
        "id": generate_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": scored.model,
        "choices": [choice],
        "usage": build_usage(scored),
    }
    return build_response(content, scored)
