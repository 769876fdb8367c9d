"""What the wire formats of other services have in common: each only translates, by these.

All of them fail as a whole where one conversation cannot be scored, since none has a place for an
error beside its rewards. What was made of a body that says less than ours stands in headers.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Query
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
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    ScoreError,
    Truncation,
    add_tools,
    parse_arguments,
)
from serve.api.error_responses import build_exception, truncate_for_message
from serve.api.routes.scoring import sigmoid
from serve.api.schemas import ModelName, Tools
from serve.errors import BadRequestError, EmptyInputError, UnknownModelError
from serve.scoring.served_model import ScoreResult
from serve.scoring.service import ScoringService
from serve.telemetry.context import current_request

FORM_TAG_PREFIX = "form:"
"""Begins the tag of a body's form, which is no place in the body."""

MODEL_HEADER = "x-skyreward-model"
INPUT_HEADER = "x-skyreward-input"
ACTIVATION_HEADER = "x-skyreward-use-activation"

_PRIORITIES = 1_000
_MAX_HEADER_LENGTH = 1_000

ModelInQuery = Annotated[
    str | None,
    Query(alias="model", description="a served model, for clients whose bodies name none"),
]


# Without `fail_fast` each wrong item is an error of its own, of 600 bytes: one body could take all
# memory.
TextList = Annotated[list[str], Field(fail_fast=True)]
MessageList = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class CompatBody(BaseModel):
    """A body of another service; fields that it does not know are ignored, as there."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How the conversations of a body are scored.

    Attributes:
        truncation: of those that are too long.
        max_length: a limit below the model's.
        priority: see `ScoringService.score`.
        hint: added to the message where text came in another model's template.
    """

    truncation: Truncation = "error"
    max_length: int | None = None
    priority: int = 0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class CompatResult:
    """All rewards of a body.

    Attributes:
        model: alias of the model.
        results: in the order of the conversations.
        headers: what is to be told of them.
    """

    model: str
    results: list[Reward]
    headers: dict[str, str]

    @property
    def num_tokens(self) -> int:
        """Of all of them."""
        return sum(result.num_tokens for result in self.results)


async def compute_rewards(
    service: ScoringService,
    name: str | None,
    items: Sequence[object],
    options: ScoringOptions | None = None,
) -> CompatResult:
    """Score what a body holds, all or nothing.

    Args:
        service: that scores.
        name: of the model.
        items: conversations, `RenderResult` or `PrerenderedTokens`.
        how: by default as a native request without options.

    Raises:
        RewardError: of the request, or of the first conversation that cannot be scored.
    """
    options = options or ScoringOptions()
    scores = await service.score(
        name, items, options.truncation, options.priority, options.max_length
    )
    results = []
    for place, result in enumerate(scores.results):
        if isinstance(result, ScoreError):
            raise build_exception(
                ScoreError(result.code, result.message + _hint(result, options)),
                f"input {place} of {len(items)}" if len(items) > 1 else "",
            )
        results.append(result)
    return CompatResult(scores.model, results, _headers(scores, results))


def resolve_model_name(service: ScoringService, *names: str | None) -> str | None:
    """The model that a body means whose own service takes any name: a served one, or the only one.

    Raises:
        UnknownModelError: none is served by that name, and there are several.
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
    """A text, several, token ids, or several lists of them, as most services take them.

    Raises:
        ValueError: it is none of these.
    """
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
    """Whether inputs are one text, or one list of ids."""
    return isinstance(inputs, str) or (bool(inputs) and type(inputs[0]) is int)


def parse_inputs(inputs: Any) -> list[PrerenderedText | PrerenderedTokens]:
    """What inputs stand for.

    Raises:
        EmptyInputError: nothing.
    """
    items = [inputs] if is_single(inputs) else inputs
    if not items:
        raise EmptyInputError("You must pass at least one prompt")
    return [
        PrerenderedText(i) if isinstance(i, str) else PrerenderedTokens(tuple(i)) for i in items
    ]


class ChatBody(CompatBody):
    """One conversation, rendered here, in the fields of OpenAI's and vLLM's chat bodies."""

    messages: MessageList = Field(description="one conversation, the assistant's last")
    tools: Tools = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None

    @model_validator(mode="after")
    def _reject_template_choice(self) -> ChatBody:
        if self.chat_template is not None or self.chat_template_kwargs:
            raise ValueError(
                "requests cannot choose the chat template: rewards are those of the model's own"
            )
        if self.documents:
            raise ValueError("`documents` are not rendered; write them into the messages")
        return self

    def get_conversations(self) -> list[Any]:
        """The conversation to score; `arguments` of tool calls are objects, as vLLM makes them.

        Raises:
            InvalidConversationError: the text of `arguments` is not JSON of an object.
        """
        return [add_tools(parse_arguments(self.messages), self.tools)]


class VllmBody(CompatBody):
    """Fields by which vLLM's clients ask to cut what is too long, and their like."""

    model: ModelName = None
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="-1: cut at the model's limit; else at so many tokens"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="`right` (default) keeps the first tokens, `left` the last"
    )
    priority: int = Field(default=0, description="lower goes first among the key's own")
    use_activation: StrictBool | None = Field(
        default=None, description="true: the sigmoid of the reward; else the raw reward"
    )
    request_id: str | None = None

    def get_options(self) -> ScoringOptions:
        """The same in our words.

        Raises:
            BadRequestError: cut to nothing.
        """
        priority = max(-_PRIORITIES, min(_PRIORITIES, self.priority))
        if self.truncate_prompt_tokens is None:
            return ScoringOptions(priority=priority)
        if self.truncate_prompt_tokens == 0:
            raise BadRequestError("truncate_prompt_tokens is 0, which leaves nothing to score")
        limit = None if self.truncate_prompt_tokens < 0 else self.truncate_prompt_tokens
        return ScoringOptions(self.truncation_side or "right", limit, priority)

    def apply_activation(self, scored: CompatResult) -> list[float]:
        """Rewards, or their sigmoids where that was asked for; headers say which."""
        asked = "default" if self.use_activation is None else "as asked"
        scored.headers[ACTIVATION_HEADER] = f"{str(bool(self.use_activation)).lower()} ({asked})"
        rewards = [result.reward for result in scored.results]
        return list(map(sigmoid, rewards)) if self.use_activation else rewards

    def build_response_id(self, prefix: str) -> str:
        """As vLLM makes it of the request's id."""
        return f"{prefix}-{truncate_for_message(self.request_id or current_request().id)}"


def build_response(content: Any, scored: CompatResult) -> JSONResponse:
    """The answer to a body, with its headers."""
    return JSONResponse(content, headers=scored.headers)


def build_usage(scored: CompatResult) -> dict[str, Any]:
    """Tokens, as OpenAI's clients read them."""
    return {
        "prompt_tokens": scored.num_tokens,
        "total_tokens": scored.num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def build_envelope(identifier: str, scored: CompatResult) -> dict[str, Any]:
    """What begins most answers."""
    return {
        "id": identifier,
        "object": "list",
        "created": int(time.time()),
        "model": scored.model,
    }


def encode_base64(value: float, order: Literal["<", ">"] = "<") -> str:
    """A float32 as bytes, for JSON."""
    return base64.b64encode(struct.pack(order + "f", value)).decode()


def to_header_value(text: str) -> str:
    """Fit for a header: short, printable ASCII."""
    return (
        truncate_for_message(text, _MAX_HEADER_LENGTH).encode("ascii", "backslashreplace").decode()
    )


def _headers(scores: ScoreResult, results: Sequence[Reward]) -> dict[str, str]:
    recognised = dict.fromkeys(result.input_format or "conversation" for result in results)
    warnings = dict.fromkeys(w.partition(":")[0] for result in results for w in result.warnings)
    num_cut = sum(result.truncated for result in results)
    headers: Mapping[str, str] = {
        MODEL_HEADER: scores.model,
        INPUT_HEADER: "; ".join(recognised),
        "x-skyreward-warnings": ", ".join(warnings),
        "x-skyreward-truncated": str(num_cut) if num_cut else "",
    }
    return {name: to_header_value(value) for name, value in headers.items() if value}


def _hint(error: ScoreError, options: ScoringOptions) -> str:
    return options.hint if error.code == "foreign_template" else ""


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {kind}


def _is_token_ids(value: object) -> bool:
    return _is_list_of(int, value)
