"""vLLM's `/classify`, `/pooling` and `/tokenize`, with raw rewards by default.

SGLang has the path `/classify` too; `serve.api.compat.shared_paths` routes it.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from rm_core import PrerenderedText, ScoreError
from serve.api.compat.common import (
    FORM_TAG_PREFIX,
    INPUT_HEADER,
    MODEL_HEADER,
    ChatBody,
    CompatBody,
    CompatResult,
    Inputs,
    VllmBody,
    build_envelope,
    build_response,
    build_usage,
    compute_rewards,
    encode_base64,
    parse_inputs,
    to_header_value,
)
from serve.api.dependencies import ServiceDep
from serve.api.error_responses import build_compat_error_docs, build_exception
from serve.api.json_route import JsonRoute
from serve.api.schemas import ModelName
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.telemetry.context import current_request

router = APIRouter(tags=["vLLM"], responses=build_compat_error_docs(), route_class=JsonRoute)

_HELLO: list[Any] = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
_TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


class _CurrentVllmBody(VllmBody):
    @model_validator(mode="before")
    @classmethod
    def _reject_removed_fields(cls, body: Any) -> Any:
        if isinstance(body, dict):
            if "normalize" in body:
                raise ValueError("`normalize` was removed from vLLM; use `use_activation`")
            if body.get("dimensions") is not None:
                raise ValueError("`dimensions` is not supported: a reward is a single number")
        return body


class TextsBody(_CurrentVllmBody):
    """Texts that the client rendered, or token ids."""

    input: Inputs = Field(description="one or several texts or lists of token ids; BOS is optional")

    def get_conversations(self) -> list[Any]:
        """Return the prerendered texts or token ids to score."""
        return list(parse_inputs(self.input))


class _VllmChatBody(ChatBody):
    add_generation_prompt: bool = False
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _reject_generation_options(self) -> _VllmChatBody:
        for name in ("add_generation_prompt", "continue_final_message"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` would score something other than the answer; leave it out"
                )
        return self


class MessagesBody(_VllmChatBody, _CurrentVllmBody):
    """One conversation, rendered by the service."""


class _EncodingOptions(CompatBody):
    task: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"

    @model_validator(mode="after")
    def _check_task(self) -> _EncodingOptions:
        if self.task not in (None, "classify"):
            raise ValueError(
                f"task {self.task!r:.40} is not supported by a reward model; use classify or leave "
                "it out"
            )
        return self


class PoolingTexts(TextsBody, _EncodingOptions):
    """Texts or token ids, as for `/classify`; the reward is a vector of one number."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": [_TEXT]}]})


class PoolingMessages(MessagesBody, _EncodingOptions):
    """One conversation; the reward is a vector of one number."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _HELLO}]})


class TokenizeText(CompatBody):
    """A text that the client rendered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": _TEXT}]})
    model: ModelName = None
    prompt: str
    return_token_strs: bool | None = None

    def get_conversations(self) -> list[Any]:
        """Return the text to tokenize."""
        return [PrerenderedText(self.prompt)]


class TokenizeMessages(_VllmChatBody):
    """A conversation, tokenized exactly as for scoring: without a generation prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _HELLO}]})
    model: ModelName = None
    return_token_strs: bool | None = None


def select_form(body: Any) -> str:
    """Return the tag of a body's form: messages or texts."""
    is_chat = isinstance(body, dict) and "messages" in body and "input" not in body
    return FORM_TAG_PREFIX + ("messages" if is_chat else "texts")


Pooling = Annotated[
    Annotated[PoolingTexts, Tag(FORM_TAG_PREFIX + "texts")]
    | Annotated[PoolingMessages, Tag(FORM_TAG_PREFIX + "messages")],
    Discriminator(select_form),
]
Tokenize = Annotated[
    Annotated[TokenizeText, Tag(FORM_TAG_PREFIX + "texts")]
    | Annotated[TokenizeMessages, Tag(FORM_TAG_PREFIX + "messages")],
    Discriminator(select_form),
]


async def classify(body: TextsBody | MessagesBody, service: ScoringService) -> JSONResponse:
    """Return the reward of each input, in `probs`."""
    scored = await compute_rewards(
        service, body.model, body.get_conversations(), body.get_options()
    )
    data = [
        {"index": i, "label": "LABEL_0", "probs": [value], "num_classes": 1}
        for i, value in enumerate(body.apply_activation(scored))
    ]
    return _build_list_response("classify", body, data, scored)


@router.post("/pooling", summary="Score as vLLM's pooling does")
async def pooling(body: Pooling, service: ServiceDep) -> JSONResponse:
    """Return the reward of each input as a vector of one number, or as float32 in base64."""
    scored = await compute_rewards(
        service, body.model, body.get_conversations(), body.get_options()
    )
    order = body.endianness if body.endianness != "native" else sys.byteorder
    data: list[dict[str, Any]] = []
    for i, value in enumerate(body.apply_activation(scored)):
        encoded = encode_base64(value, "<" if order == "little" else ">")
        vector = [value] if body.encoding_format == "float" else encoded
        data.append({"index": i, "object": "pooling", "data": vector})
    return _build_list_response("pooling", body, data, scored)


@router.post("/tokenize", summary="Tokenize as vLLM does")
async def tokenize(body: Tokenize, service: ServiceDep) -> JSONResponse:
    """Return exactly the token ids that would be scored, with a single BOS."""
    model, (encoded,) = await service.encode(
        body.model, body.get_conversations(), "error", current_request()
    )
    if isinstance(encoded, ScoreError):
        raise build_exception(encoded)
    if body.return_token_strs:
        raise BadRequestError("token strings are not supported; leave `return_token_strs` out")
    content = {
        "count": encoded.num_tokens,
        "max_model_len": model.encoder.max_length,
        "tokens": list(encoded.input_ids),
        "token_strs": None,
    }
    headers = {
        MODEL_HEADER: to_header_value(model.settings.alias),
        INPUT_HEADER: encoded.input_format or "conversation",
    }
    return JSONResponse(content, headers=headers)


def _build_list_response(
    kind: str, body: VllmBody, data: list[Any], scored: CompatResult
) -> JSONResponse:
    envelope = build_envelope(body.build_response_id(kind), scored)
    usage = build_usage(scored) | {"completion_tokens_details": None}
    return build_response({**envelope, "data": data, "usage": usage}, scored)
