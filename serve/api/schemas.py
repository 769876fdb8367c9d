"""The native wire format: request bodies, and the schemas of responses for the OpenAPI document.

Only the outer structure of a body is validated here. `rm_core.inputs.conversations` checks the
conversations and pairs one by one, so that a bad one gets an error in its result. The OpenAPI
document has their schema nevertheless.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    WithJsonSchema,
    model_validator,
)

from rm_core import Aggregation, InvalidConversationError, add_tools, parse_tools

_TEXT_PART = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "type": {"type": "string", "enum": ["text", "input_text", "output_text"]},
        "text": {"type": "string"},
    },
}
_IMAGE_DATA = {
    "type": "string",
    "description": "a data URI such as `data:image/png;base64,...`, or base64 of a PNG, JPEG, "
    "WebP, GIF or BMP file; no address is ever fetched",
}
_IMAGE_URL_PART = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"type": "string", "enum": ["image_url", "input_image"]},
        "image_url": {
            "anyOf": [
                {"type": "object", "required": ["url"], "properties": {"url": _IMAGE_DATA}},
                _IMAGE_DATA,
            ]
        },
    },
}
_IMAGE_PART = {
    "type": "object",
    "required": ["type", "image"],
    "properties": {"type": {"type": "string", "enum": ["image"]}, "image": _IMAGE_DATA},
}
_PARTS = {
    "type": "array",
    "items": {"anyOf": [_TEXT_PART, _IMAGE_URL_PART, _IMAGE_PART]},
    "description": "parts of text, and of images for models that read images",
}
_CONTENT = {"anyOf": [{"type": "string"}, _PARTS]}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "user", "assistant", "tool"]},
        "content": _CONTENT,
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
}
_MESSAGES: dict[str, Any] = {"type": "array", "minItems": 1, "items": _MESSAGE}
_TOOLS: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": "object"}},
        {"type": "string", "description": "JSON text of such a list"},
        {"type": "null"},
    ]
}
_CHAT = {
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": _MESSAGES, "tools": _TOOLS},
    "additionalProperties": False,
}
_CONVERSATION: dict[str, Any] = {"anyOf": [_MESSAGES, _CHAT]}
_TEXT_OR_MESSAGES: dict[str, Any] = {"anyOf": [{"type": "string"}, _MESSAGES, _CHAT]}
_PAIR = {
    "type": "object",
    "required": ["chosen", "rejected"],
    "properties": {
        "prompt": _TEXT_OR_MESSAGES,
        "chosen": _TEXT_OR_MESSAGES,
        "rejected": _TEXT_OR_MESSAGES,
        "tools": _TOOLS,
    },
}
_STEP_ITEM = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"anyOf": [{"type": "string"}, _MESSAGES]},
        "response": {"type": "string"},
        "steps": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    },
    "oneOf": [{"required": ["response"]}, {"required": ["steps"]}],
    "additionalProperties": False,
}


def _check_tools(value: object) -> object:
    try:
        return parse_tools(value)
    except InvalidConversationError as error:
        raise ValueError(error.detail) from None


RawConversation = Annotated[Any, WithJsonSchema(_CONVERSATION)]
RawPair = Annotated[Any, WithJsonSchema(_PAIR)]
RawStepItem = Annotated[Any, WithJsonSchema(_STEP_ITEM)]
RawPrompt = Annotated[Any, WithJsonSchema(_TEXT_OR_MESSAGES)]
RawResponse = Annotated[Any, WithJsonSchema(_TEXT_OR_MESSAGES)]
RawMessages = Annotated[Any, WithJsonSchema({"anyOf": [_MESSAGES, {"type": "null"}]})]
Tools = Annotated[
    Any,
    AfterValidator(_check_tools),
    WithJsonSchema(_TOOLS),
    Field(
        description="JSON schemas of the available functions, rendered by the model's chat "
        "template; for conversations without their own `tools`"
    ),
]

ModelName = Annotated[
    str | None, Field(description="a served model; optional if only one model is served")
]
TruncationMode = Annotated[
    Literal["error", "left", "right"],
    Field(
        description="how to handle a conversation over the limit: `error` rejects it; `left` drops "
        "the oldest turns, and keeps the template's markers and the last turn; `right` keeps the "
        "first tokens"
    ),
]

Priority = Annotated[
    int,
    Field(
        ge=-1000,
        le=1000,
        description="requests with a lower value go first among those with the same API key",
    ),
]

AggregationMode = Annotated[
    Aggregation, Field(description="how a step model's rewards of steps become `reward`")
]

_PARIS: list[JsonValue] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]
_BRASILIA: list[JsonValue] = [
    _PARIS[0],
    {"role": "assistant", "content": "The capital of Brazil is Brasilia."},
]
# A red square of 32 x 32 pixels.
_RED_SQUARE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAJ0lEQVR42u3NsQkAAAjAsP"
    "7/tF7hIASyp6lTCQQCgUAgEAgEgi/BAjLD/C5w/SM9AAAAAElFTkSuQmCC"
)
_WITH_IMAGE: list[JsonValue] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": _RED_SQUARE}},
            {"type": "text", "text": "Which color is this?"},
        ],
    },
    {"role": "assistant", "content": "Red."},
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: ModelName = None
    truncation: TruncationMode = "error"
    priority: Priority = 0
    tools: Tools = None


_INPUTS = ("conversations", "messages", "pairs", "items")


def _document_either(schema: dict[str, Any]) -> None:
    """Document in the schema what the validator checks: exactly one input is required."""
    schema["examples"] = [
        {"conversations": [_PARIS, _BRASILIA]},
        {"messages": _PARIS},
        {"messages": _WITH_IMAGE},
    ]
    schema["oneOf"] = [{"required": [n]} for n in _INPUTS if n in schema["properties"]]


class _ConversationsBody(_Body):
    model_config = ConfigDict(json_schema_extra=_document_either)
    conversations: list[RawConversation] | None = Field(
        default=None,
        description="each a list of messages, or an object with `messages` and `tools`; the last "
        "message is the assistant's turn, which is scored",
    )
    messages: RawMessages = Field(
        default=None, description="a single conversation, instead of `conversations`"
    )

    @model_validator(mode="after")
    def _check_exactly_one(self) -> _ConversationsBody:
        allowed = [name for name in _INPUTS if name in type(self).model_fields]
        if sum(getattr(self, name) is not None for name in allowed) != 1:
            others = "".join(f", or `{name}`" for name in allowed[2:])
            raise ValueError(
                f"give either `conversations` (a list of conversations) or `messages` (one){others}"
            )
        return self

    @property
    def is_single(self) -> bool:
        """Whether the body holds one conversation, in `messages`."""
        return self.messages is not None

    def get_conversations(self) -> list[object]:
        """Return the conversations, each with the body's `tools` unless it has its own."""
        conversations = [self.messages] if self.conversations is None else self.conversations
        return [add_tools(conversation, self.tools) for conversation in conversations]


class ScoreRequest(_ConversationsBody):
    """Conversations to score."""

    models: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        fail_fast=True,
        description="several served models, which score side by side, instead of `model`",
    )
    combine: dict[str, FiniteFloat] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="with `models`: weight of each model whose reward is in the sum `reward`",
        examples=[{"a": 0.7, "b": 0.3}],
    )
    calibrated: bool = Field(
        default=False, description="whether `combine` takes the calibrated rewards"
    )
    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None,
        description="least and greatest value that `combine` takes of a model, before the weight",
        examples=[[-5, 5]],
    )
    aggregation: AggregationMode = "last"
    turns: Literal["last", "all"] = Field(
        default="last",
        description="`all` adds `turn_rewards`, the reward of the conversation up to each "
        "assistant message; for classifiers",
    )

    @model_validator(mode="after")
    def _check_models(self) -> ScoreRequest:
        names = self.models or []
        if self.models is not None and self.model is not None:
            raise ValueError("`model` and `models` exclude each other; give one of the two")
        if len(set(names)) < len(names):
            raise ValueError("`models` names a model twice; name each model once")
        if self.combine is not None and (others := self.combine.keys() - set(names)):
            raise ValueError(
                f"`combine` has {sorted(others)[0]!r}, which is not one of `models`; add it there"
            )
        if self.combine is None and (self.calibrated or self.clip is not None):
            raise ValueError("`calibrated` and `clip` need `combine`, the weights of the models")
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise ValueError("`clip` is [least, greatest], and the first is greater")
        return self


class CompareRequest(_Body):
    """Preference pairs to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pairs": [
                        {
                            "prompt": "What is the capital of France?",
                            "chosen": "The capital of France is Paris.",
                            "rejected": "The capital of Brazil is Brasilia.",
                        },
                        {"chosen": _PARIS, "rejected": _BRASILIA},
                    ]
                }
            ]
        }
    )
    pairs: list[RawPair] = Field(
        description="`prompt` (text or messages) with two answers, or two whole conversations"
    )
    aggregation: AggregationMode = "last"
    orders: Literal["both", "given"] = Field(
        default="both",
        description="a judge reads the answers in both orders, or in the given one alone",
    )


class StepsRequest(_Body):
    """Problems and solutions, to score step by step."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"prompt": "2+2?", "response": "Two and two are four.\nSo 4."},
                        {
                            "prompt": [{"role": "user", "content": "2+2?"}],
                            "steps": ["Two and two are four.", "So 4."],
                        },
                    ]
                }
            ]
        }
    )
    items: list[RawStepItem] = Field(
        description="`prompt` (text or messages) with `response`, which is divided into steps as "
        "the checkpoint's authors do, or with `steps`, which are taken as they are"
    )
    aggregation: AggregationMode = "last"


class RankRequest(_Body):
    """Answers to one prompt, to rank."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "What is the capital of France?",
                    "responses": ["Lyon.", "The capital of France is Paris.", "I can't say."],
                }
            ]
        }
    )
    prompt: RawPrompt = Field(description="text (one user message) or messages")
    responses: list[RawResponse] = Field(
        description="each a text, or the messages that follow the prompt"
    )
    aggregation: AggregationMode = "last"


class RenderRequest(_ConversationsBody):
    """Conversations, pairs or solutions to render and tokenize, without scoring them."""

    pairs: list[RawPair] | None = Field(
        default=None, description="for a judge: pairs as of `/v1/compare`, read in both orders"
    )
    items: list[RawStepItem] | None = Field(
        default=None, description="for a step model: solutions as of `/v1/steps`"
    )
    offsets: bool = Field(
        default=False, description="whether to return the position of each token in the text"
    )


class ItemError(BaseModel):
    """The reason why an item could not be scored."""

    code: str = Field(examples=["conversation_too_long"])
    message: str


class Usage(BaseModel):
    """Numbers of tokens of a request."""

    num_tokens: int = Field(description="tokens of all scored conversations")
    num_computed_tokens: int = Field(
        description="tokens that went through the model; tokens computed for several requests at "
        "once are counted in one of the requests"
    )
    num_cached_tokens: int = Field(description="tokens of conversations answered from the cache")


class FingerprintOut(BaseModel):
    """Rewards are comparable only if their fingerprints are equal."""

    revision: str
    template_sha256: str
    dtype: str
    attention: str
    template_date: str | None = Field(
        default=None, description="date passed to the chat template as today's, if it uses a date"
    )
    version: str | None = Field(
        default=None, description="name of the weights, if a reload put them in"
    )


class SleepRequest(BaseModel):
    """What of the model is kept; the body may be empty."""

    model_config = ConfigDict(extra="forbid")
    level: Literal[1, 2] = Field(
        default=1,
        description="1: the weights wait in the host's memory; 2: they are dropped, and read again "
        "from the checkpoint",
    )


class WakeRequest(BaseModel):
    """A body without fields; it may be empty."""

    model_config = ConfigDict(extra="forbid")


class ReloadRequest(BaseModel):
    """Where the new weights are."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"source": "/runs/7/checkpoint-100"}]}
    )
    source: str = Field(
        min_length=1,
        max_length=4096,
        description="a folder that every replica can read, or ORG/NAME@REVISION on the hub",
    )
    version: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="name of the weights in fingerprints; default: the folder's name or the commit",
    )


class LifecycleResponse(BaseModel):
    """The model after the request."""

    model: str
    state: str
    sleep_level: int = Field(description="0: awake")
    seconds: float = Field(description="duration of the change")
    freed_bytes: int | None = Field(
        default=None,
        description="memory that the sleep gave back, of the device or, on a CPU, of the process; "
        "null if it cannot be measured",
    )
    fingerprint: FingerprintOut | None = Field(description="null while the model is loading")


class _Answer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    model: str
    usage: Usage
    fingerprint: FingerprintOut


class TurnReward(BaseModel):
    """The reward of a conversation up to an assistant message: `reward`, or `error`."""

    message: int = Field(description="index of the assistant message in `messages`")
    reward: float | None = None
    error: ItemError | None = None


class ConversationResult(BaseModel):
    """One conversation: `reward`, or `error`."""

    index: int
    reward: float | None = Field(
        default=None,
        description="raw float32 logit; of a step model, the aggregate of `step_rewards`; in the "
        "ranking of a judge, the mean margin against the other answers",
    )
    calibrated_reward: float | None = Field(
        default=None, description="(reward - mean) / deviation, of a model with a calibration"
    )
    score: float | None = Field(
        default=None, description="the reward again, if the body has `messages`"
    )
    num_tokens: int | None = None
    step_rewards: list[float] | None = Field(
        default=None, description="of a step model: the reward of each step, between 0 and 1"
    )
    aggregation: Aggregation | None = None
    turn_rewards: list[TurnReward] | None = Field(
        default=None, description='with `"turns": "all"`: the reward after each assistant message'
    )
    truncated: bool | None = None
    warnings: list[str] | None = None
    error: ItemError | None = None


class ScoreResponse(_Answer):
    """Rewards in the order of the conversations."""

    results: list[ConversationResult]


class ModelDetails(BaseModel):
    """What one of several models gave besides the reward."""

    num_tokens: int | None = None
    step_rewards: list[float] | None = None
    aggregation: Aggregation | None = None
    turn_rewards: list[TurnReward] | None = None
    truncated: bool | None = None
    warnings: list[str] | None = None


class ModelsResult(BaseModel):
    """One conversation: of each model the reward or an error."""

    index: int
    rewards: dict[str, float] = Field(description="raw reward by model; without those that failed")
    calibrated_rewards: dict[str, float] | None = Field(
        default=None, description="calibrated reward by model, of those with a calibration"
    )
    reward: float | None = Field(
        default=None, description="the weighted sum, if every model in `combine` has a reward"
    )
    errors: dict[str, ItemError] | None = None
    details: dict[str, ModelDetails]


class ModelsScoreResponse(BaseModel):
    """Rewards of several models in the order of the conversations."""

    id: str
    object: Literal["list"] = "list"
    models: list[str]
    usage: dict[str, Usage] = Field(description="by model; without those that failed as a whole")
    fingerprints: dict[str, FingerprintOut] = Field(description="as `usage`")
    results: list[ModelsResult]


class StepsResult(BaseModel):
    """One solution: the reward of each step, or `error`."""

    index: int
    step_rewards: list[float] | None = None
    reward: float | None = Field(default=None, description="the aggregate of `step_rewards`")
    calibrated_reward: float | None = Field(
        default=None, description="(reward - mean) / deviation, of a model with a calibration"
    )
    aggregation: Aggregation | None = None
    num_steps: int | None = None
    num_tokens: int | None = None
    warnings: list[str] | None = None
    error: ItemError | None = None


class StepsResponse(_Answer):
    """Rewards of steps in the order of the items."""

    results: list[StepsResult]


class Verdict(BaseModel):
    """What a judge says of two answers in one order."""

    log_odds: float = Field(description="log-odds that `chosen` is better")
    label_mass: float = Field(description="probability of the two labels together")


class PairResult(BaseModel):
    """One pair: both rewards, or a judge's verdict, or `error`."""

    index: int
    chosen_reward: float | None = Field(default=None, description="null from a judge")
    rejected_reward: float | None = Field(default=None, description="null from a judge")
    margin: float | None = Field(
        default=None,
        description="chosen_reward - rejected_reward; of a judge, the mean log-odds that `chosen` "
        "is better",
    )
    probability: float | None = Field(default=None, description="sigmoid(margin)")
    orders: list[Verdict] | None = Field(
        default=None, description="a judge's verdict with `chosen` first, then second"
    )
    consistent: bool | None = Field(
        default=None,
        description="whether a judge prefers the same answer in both orders; null if it read one",
    )
    num_tokens: int | None = Field(default=None, description="tokens that a judge read")
    truncated: bool | None = None
    warnings: list[str] | None = None
    error: ItemError | None = None


class CompareResponse(_Answer):
    """Margins in the order of the pairs."""

    results: list[PairResult]
    accuracy: float | None = Field(description="share of scored pairs with margin > 0")


class RankResult(ConversationResult):
    """One answer; `rank` 1 is the best, equal rewards share a rank."""

    rank: int | None = None
    num_comparisons: int | None = Field(
        default=None,
        description="of a judge: number of other answers with which it compared this one; `reward` "
        "is the mean margin against them",
    )


class RankResponse(_Answer):
    """Results in the order of the answers."""

    results: list[RankResult]
    best_index: int | None = Field(
        description="index of the first best answer; null if no answer was scored"
    )


class RenderedImage(BaseModel):
    """An image as the model reads it, and where its tokens are."""

    position: int = Field(description="index of its first token in `input_ids`")
    num_tokens: int
    width: int = Field(description="in pixels, after resizing")
    height: int = Field(description="in pixels, after resizing")


class Rendering(BaseModel):
    """Exactly what would be scored, or `error`."""

    text: str | None = None
    input_ids: list[int] | None = None
    num_tokens: int | None = None
    readout_position: int | None = Field(
        default=None, description="index of the token that is read; of a step model, the last"
    )
    steps: list[str] | None = Field(
        default=None, description="of a step model: the steps, as the solution was divided"
    )
    readout_positions: list[int] | None = Field(
        default=None, description="of a step model: index of the token that is read for each step"
    )
    offsets: list[tuple[int, int]] | None = Field(
        default=None,
        description="start and end of each token in `text`, in characters (code points), if "
        "requested; null if truncation on the right changed the tokens of the text, and for step "
        "models and judges where parts of the text are tokenized one by one",
    )
    images: list[RenderedImage] | None = Field(
        default=None,
        description="the images in order, if there are any; `text` has one placeholder for each "
        "and `input_ids` as many as it has tokens",
    )
    truncated: bool | None = None
    warnings: list[str] | None = None
    error: ItemError | None = None


class RenderResult(Rendering):
    """Exactly what would be scored, or `error`."""

    index: int
    swapped: Rendering | None = Field(
        default=None, description="of a pair: what a judge reads with `rejected` first"
    )


class RenderResponse(BaseModel):
    """Renderings in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RenderResult]
    template_sha256: str


class ErrorBody(BaseModel):
    """The error of a request that failed as a whole."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorResponse(BaseModel):
    """The body of every 4xx and 5xx."""

    error: ErrorBody
