"""Shared code of the wire formats of other services.

In these formats, a request fails as a whole if one conversation cannot be scored, since none of
them has a field for an error next to its rewards. Response headers report how the service
interpreted a body, and which model it used.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from rm_core import (
    Aggregation,
    Encoded,
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    ScoreError,
    Truncation,
    add_tools,
    parse_arguments,
    sigmoid,
)
from serve.api.error_responses import build_compat_error_docs, build_exception, truncate_for_message
from serve.api.routing import JsonRoute
from serve.api.schemas import ModelName, Tools
from serve.errors import BadRequestError, EmptyInputError, UnknownModelError
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.telemetry.logging import current_request

FORM_TAG_PREFIX = "form:"
"""Prefix of the tags of a union's members; error messages omit tags, which are not in the body."""

MODEL_HEADER = "x-skyreward-model"
VERSION_HEADER = "x-skyreward-version"
INPUT_HEADER = "x-skyreward-input"
ACTIVATION_HEADER = "x-skyreward-use-activation"

EXAMPLE_CHAT: list[Any] = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
EXAMPLE_TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"

_PRIORITIES = 1_000
_MAX_HEADER_LENGTH = 1_000

ModelInQuery = Annotated[
    str | None,
    Query(alias="model", description="a served model, for clients whose body names no model"),
]


AggregationInQuery = Annotated[
    Aggregation,
    Query(
        alias="aggregation",
        description="how a step model's rewards of steps become the reward, for clients whose body "
        "does not say",
    ),
]

# Without `fail_fast`, each wrong item is a separate error of 600 bytes: one body could exhaust the
# memory.
TextList = Annotated[list[str], Field(fail_fast=True)]
MessageList = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


def create_router(service: str) -> APIRouter:
    """Create the router of a wire format; `service` is its name in the OpenAPI document."""
    return APIRouter(tags=[service], responses=build_compat_error_docs(), route_class=JsonRoute)


class CompatBody(BaseModel):
    """A body of another service; unknown fields are ignored, as in that service."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """Options for scoring the conversations of a body."""

    truncation: Truncation = "error"  # how to truncate conversations that are too long
    # Limit in tokens, below the model's limit; None for the model's limit.
    max_length: int | None = None
    priority: int = 0  # see `ScoringService.score`
    # Text appended to the error message if a text uses another model's chat template.
    hint: str = ""
    every_token: bool = False  # see `ScoringService.score`
    aggregation: Aggregation = "last"  # how a step model's rewards of steps become the reward


@dataclass(frozen=True, slots=True)
class CompatResult:
    """The rewards of a body."""

    model: str  # alias of the model
    results: list[Reward]  # rewards, in the order of the conversations
    headers: dict[str, str]  # response headers that describe the results
    version: str | None  # name of the weights that a reload put in; None for those of the start
    # Where every token was read, the token ids of each conversation.
    token_ids: list[tuple[int, ...]]

    @property
    def num_tokens(self) -> int:
        """Tokens of all conversations."""
        return sum(result.num_tokens for result in self.results)


async def compute_rewards(
    service: ScoringService,
    name: str | None,
    items: Sequence[object],
    options: ScoringOptions | None = None,
) -> CompatResult:
    """Score all items of a body, or raise the error of the first that cannot be scored."""
    options = options or ScoringOptions()
    scores = await service.score(
        name,
        items,
        options.truncation,
        options.priority,
        options.max_length,
        context=current_request(),
        every_token=options.every_token,
        keep_encoded=options.every_token,
        aggregation=options.aggregation,
    )
    results = []
    for index, result in enumerate(scores.results):
        if isinstance(result, ScoreError):
            hint = options.hint if result.code == "foreign_template" else ""
            raise build_exception(
                ScoreError(result.code, result.message + hint),
                f"input {index} of {len(items)}" if len(items) > 1 else "",
            )
        results.append(result)
    token_ids = [item.input_ids for item in scores.encoded if isinstance(item, Encoded)]
    version = scores.fingerprint.version
    return CompatResult(scores.model, results, _headers(scores, results), version, token_ids)


def resolve_model_name(service: ScoringService, *names: str | None) -> str | None:
    """Resolve the model name of a body; the only model may have any name, as in the other service.

    The first name that is not None counts. Without a model of that name, None is returned, which
    means the only model.
    """
    name = next((name for name in names if name is not None), None)
    try:
        service.resolve_model(name)
    except UnknownModelError:
        if len(service.models) > 1:
            raise
        return None
    return name


def check_inputs(value: object) -> object:
    """Check inputs in the form of most services: one or several texts or lists of token ids."""
    if isinstance(value, str) or _is_list_of(str, value) or _is_token_ids(value):
        return value
    if isinstance(value, list) and all(map(_is_token_ids, value)):
        return value
    raise ValueError(
        "must be a string, a list of strings, a list of token ids or a list of such lists"
    )


_TEXTS = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
_ID = {"type": "integer", "minimum": 0}
_IDS = [
    {"type": "array", "items": _ID},
    {"type": "array", "items": {"type": "array", "items": _ID}},
]
Inputs = Annotated[Any, AfterValidator(check_inputs), WithJsonSchema({"anyOf": [*_TEXTS, *_IDS]})]
"""See `check_inputs`."""


def is_single(inputs: Any) -> bool:
    """Return whether inputs are one text, or one list of token ids."""
    return isinstance(inputs, str) or (bool(inputs) and type(inputs[0]) is int)


def parse_inputs(inputs: Any) -> list[PrerenderedText | PrerenderedTokens]:
    """Convert inputs to prerendered texts and token ids."""
    items = [inputs] if is_single(inputs) else inputs
    if not items:
        raise EmptyInputError("You must pass at least one prompt")
    return [
        PrerenderedText(item) if isinstance(item, str) else PrerenderedTokens(tuple(item))
        for item in items
    ]


class ChatBody(CompatBody):
    """One conversation, rendered by the service, in the fields of OpenAI's and vLLM's bodies."""

    messages: MessageList = Field(
        description="one conversation; the last message is the assistant's"
    )
    tools: Tools = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None

    @model_validator(mode="after")
    def _reject_template_choice(self) -> ChatBody:
        if self.chat_template is not None or self.chat_template_kwargs:
            raise ValueError(
                "requests cannot choose the chat template: the model's own template is always used"
            )
        if self.documents:
            raise ValueError("`documents` are not rendered; write them into the messages")
        return self

    def get_conversations(self) -> list[Any]:
        """Return the conversation to score, with `arguments` of tool calls parsed, as in vLLM."""
        return [add_tools(parse_arguments(self.messages), self.tools)]


class VllmBody(CompatBody):
    """Common fields of vLLM's bodies: truncation, priority, activation and request id."""

    model: ModelName = None
    truncate_prompt_tokens: int | None = Field(
        default=None,
        ge=-1,
        description="truncate to this number of tokens; -1: to the model's limit",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="`right` (default) keeps the first tokens, `left` the last"
    )
    priority: int = Field(
        default=0,
        description="requests with a lower value go first among those with the same API key",
    )
    use_activation: StrictBool | None = Field(
        default=None, description="true: return the sigmoid of the reward; otherwise the raw reward"
    )
    request_id: str | None = None

    def get_options(self) -> ScoringOptions:
        """Return the scoring options that correspond to the fields."""
        priority = max(-_PRIORITIES, min(_PRIORITIES, self.priority))
        if self.truncate_prompt_tokens is None:
            return ScoringOptions(priority=priority)
        if self.truncate_prompt_tokens == 0:
            raise BadRequestError("truncate_prompt_tokens is 0, which leaves nothing to score")
        limit = None if self.truncate_prompt_tokens < 0 else self.truncate_prompt_tokens
        return ScoringOptions(self.truncation_side or "right", limit, priority)

    def apply_activation(self, scored: CompatResult) -> list[float]:
        """Return the rewards, or their sigmoids if requested; sets a header that says which.

        The rewards of a step model are between 0 and 1 in any case.
        """
        source = "default" if self.use_activation is None else "as asked"
        scored.headers[ACTIVATION_HEADER] = f"{str(bool(self.use_activation)).lower()} ({source})"
        return [
            sigmoid(result.reward)
            if self.use_activation and not result.step_rewards
            else result.reward
            for result in scored.results
        ]

    def build_response_id(self, prefix: str) -> str:
        """Return the id of a response, derived from the request's id as in vLLM."""
        return f"{prefix}-{truncate_for_message(self.request_id or current_request().id)}"


def build_response(content: Any, scored: CompatResult) -> JSONResponse:
    """Return a response with the headers of the results."""
    return JSONResponse(content, headers=scored.headers)


def build_usage(scored: CompatResult) -> dict[str, Any]:
    """Return the numbers of tokens, in OpenAI's format."""
    return {
        "prompt_tokens": scored.num_tokens,
        "total_tokens": scored.num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def build_envelope(identifier: str, scored: CompatResult) -> dict[str, Any]:
    """Return the first fields of most responses."""
    return {"id": identifier, "object": "list", "created": int(time.time()), "model": scored.model}


def encode_base64(values: Sequence[float], order: Literal["<", ">"] = "<") -> str:
    """Encode float32 values as bytes in base64; `order` is the byte order, `<`: little-endian."""
    return base64.b64encode(struct.pack(f"{order}{len(values)}f", *values)).decode()


def to_header_value(text: str) -> str:
    """Make a text safe for a header: short, ASCII, and without control characters."""
    text = truncate_for_message(text, _MAX_HEADER_LENGTH)
    ascii_text = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in ascii_text)


def _headers(scores: ScoreResult, results: Sequence[Reward]) -> dict[str, str]:
    input_formats = dict.fromkeys(result.input_format or "conversation" for result in results)
    warnings = dict.fromkeys(
        warning.partition(":")[0] for result in results for warning in result.warnings
    )
    num_truncated = sum(result.truncated for result in results)
    headers: Mapping[str, str] = {
        MODEL_HEADER: scores.model,
        VERSION_HEADER: scores.fingerprint.version or "",
        INPUT_HEADER: "; ".join(input_formats),
        "x-skyreward-warnings": ", ".join(warnings),
        "x-skyreward-truncated": str(num_truncated) if num_truncated else "",
    }
    return {name: to_header_value(value) for name, value in headers.items() if value}


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {kind}


def _is_token_ids(value: object) -> bool:
    return _is_list_of(int, value)
