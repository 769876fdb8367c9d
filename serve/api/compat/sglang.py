"""SGLang's own `/classify`, by which the Skywork model cards score, and its `/v1/embeddings`.

`/classify` is vLLM's too, and routed by `serve.api.compat.shared_paths`.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, model_validator

from serve.api.compat.common import (
    Inputs,
    ModelInQuery,
    PeerBody,
    TextList,
    answer,
    conversations_of,
    in_base64,
    is_single,
    name_or_only,
    score_all,
    usage,
)
from serve.api.dependencies import ServiceDep
from serve.api.error_responses import shaped_responses
from serve.api.json_route import JsonRoute
from serve.scoring.service import ScoringService
from serve.telemetry.context import current

router = APIRouter(tags=["SGLang"], responses=shaped_responses(), route_class=JsonRoute)

_TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


class NativeClassify(PeerBody):
    """Texts that the client templated, or token ids; `model` is a hint, as there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": [_TEXT]}]})
    model: str | None = None
    text: Inputs = Field(default=None, description="one or several")
    input_ids: Inputs = Field(default=None, description="of one or of several")
    rid: str | TextList | None = None

    @model_validator(mode="after")
    def _either(self) -> NativeClassify:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either `text` or `input_ids`")
        if isinstance(self.input_ids, str) or _has_texts(self.input_ids):
            raise ValueError("`input_ids` must be token ids")
        if self.text and not (isinstance(self.text, str) or _has_texts(self.text)):
            raise ValueError("`text` must be a string or a list of strings")
        return self


class EmbeddingBody(PeerBody):
    """As OpenAI's clients and verl send it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": _TEXT}]})
    model: str | None = None
    input: Inputs = Field(description="texts that the client templated, or token ids")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = Field(default=None, description="makes no sense: a reward is one number")


async def classify(
    body: NativeClassify, service: ScoringService, name: str | None = None
) -> JSONResponse:
    """The reward of each, as `embedding`: an object for a single one, else a list."""
    began = time.perf_counter()
    inputs = body.input_ids if body.text is None else body.text
    name = name_or_only(service, name, body.model)
    scored = await score_all(service, name, conversations_of(inputs))
    elapsed = time.perf_counter() - began
    rids = body.rid if isinstance(body.rid, list) else [body.rid] * len(scored.results)
    results = [
        {
            "embedding": [result.reward],
            "meta_info": {
                "id": (rids[i] if i < len(rids) else None) or f"{current().id}-{i}",
                "finish_reason": {"type": "length", "length": 0},
                "prompt_tokens": result.num_tokens,
                "weight_version": "default",
                "num_retractions": 0,
                "e2e_latency": elapsed,
            },
        }
        for i, result in enumerate(scored.results)
    ]
    return answer(results[0] if is_single(inputs) else results, scored)


@router.post("/v1/embeddings", summary="Score as SGLang's embeddings do")
async def embeddings(
    body: EmbeddingBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """The reward of each, as an embedding of one number."""
    name = name_or_only(service, model, body.model)
    scored = await score_all(service, name, conversations_of(body.input))
    data: list[dict[str, Any]] = []
    for i, result in enumerate(scored.results):
        value = result.reward
        as_asked = [value] if body.encoding_format == "float" else in_base64(value)
        data.append({"embedding": as_asked, "index": i, "object": "embedding"})
    content = {"data": data, "model": scored.model, "object": "list", "usage": usage(scored)}
    return answer(content, scored)


def _has_texts(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, str) for item in value)
