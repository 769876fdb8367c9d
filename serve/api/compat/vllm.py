"""vLLM's `/classify`, `/pooling`, `/tokenize`, `/score` and `/rerank`, with raw rewards by default.

Of the pairs of `/score` and `/rerank`, each query is the user's turn, each document the
assistant's. vLLM scores such pairs without a chat template, for which a chat reward model returns
meaningless numbers. The header `x-skyreward-input` reports how the texts were interpreted.
`serve.api.compat.shared_paths` routes the paths that other services have too.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from rm_core import PrerenderedText, ScoreError, sigmoid
from serve.api.compat.common import (
    EXAMPLE_CHAT,
    EXAMPLE_TEXT,
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
    create_router,
    encode_base64,
    parse_inputs,
    to_header_value,
)
from serve.api.error_responses import build_exception
from serve.api.routing import ServiceDep
from serve.api.schemas import ModelName
from serve.errors import BadRequestError, EmptyInputError
from serve.scoring.service import ScoringService
from serve.telemetry.logging import current_request

router = create_router("vLLM")


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
    mm_processor_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _reject_generation_options(self) -> _VllmChatBody:
        if self.mm_processor_kwargs:
            raise ValueError(
                "requests cannot choose `mm_processor_kwargs`: images are always resized as the "
                "model's settings `min_pixels` and `max_pixels` say; leave it out"
            )
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
        if self.task not in (None, "classify", "token_classify"):
            raise ValueError(
                f"task {self.task!r:.40} is not supported by a reward model; use classify or "
                "token_classify, or leave it out"
            )
        return self


class PoolingTexts(TextsBody, _EncodingOptions):
    """Texts or token ids, as for `/classify`; the reward is a vector of one number."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": [EXAMPLE_TEXT]}]})


class PoolingMessages(MessagesBody, _EncodingOptions):
    """One conversation; the reward is a vector of one number."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": EXAMPLE_CHAT}]})


class TokenizeText(CompatBody):
    """A text that the client rendered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": EXAMPLE_TEXT}]})
    model: ModelName = None
    prompt: str
    return_token_strs: bool | None = None

    def get_conversations(self) -> list[Any]:
        """Return the text to tokenize."""
        return [PrerenderedText(self.prompt)]


class TokenizeMessages(_VllmChatBody):
    """A conversation, tokenized exactly as for scoring: without a generation prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": EXAMPLE_CHAT}]})
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
    """Return the reward of each input as a vector of one number, or as float32 in base64.

    With `token_classify`, and from a step model, one such vector for each token.
    """
    is_step_model = service.resolve_model(body.model).encoder.kind == "step"
    every_token = body.task == "token_classify" or (is_step_model and body.task is None)
    options = replace(body.get_options(), every_token=every_token)
    scored = await compute_rewards(service, body.model, body.get_conversations(), options)
    order = body.endianness if body.endianness != "native" else sys.byteorder
    rewards = body.apply_activation(scored)
    data: list[dict[str, Any]] = []
    for i, (result, reward) in enumerate(zip(scored.results, rewards, strict=True)):
        values = [reward]
        if every_token:
            activate = sigmoid if body.use_activation else float
            values = list(map(activate, result.step_rewards))
        vector: Any = [[value] for value in values] if every_token else values
        if body.encoding_format == "base64":
            vector = encode_base64(values, "<" if order == "little" else ">")
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
        "tokens": encoded.vocabulary_ids,
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


AS_TURNS = "conversation:query-as-user,document-as-assistant"

_FIELD_PAIRS = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)
_FIELDS = sorted({field for pair in _FIELD_PAIRS for field in pair})


def has_pairs(body: dict[str, Any]) -> bool:
    """Return whether a body has a field of vLLM's pairs."""
    return any(field in body for field in _FIELDS)


def _is_text(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("content", value.get("text")), str | list)
    return isinstance(value, str)


def _check_texts(value: object) -> object:
    if _is_text(value) or (isinstance(value, list) and all(map(_is_text, value))):
        return value
    raise ValueError('must be a string, {"content": [content parts]}, or a list of these')


def _check_text(value: object) -> object:
    if _is_text(value):
        return value
    raise ValueError('must be one text: a string, or {"content": [content parts]}')


_TEXT_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object"}]}
_ONE_OR_MANY: dict[str, Any] = {
    "anyOf": [*_TEXT_SCHEMA["anyOf"], {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1}]
}
Text = Annotated[Any, AfterValidator(_check_text), WithJsonSchema(_TEXT_SCHEMA)]
Texts = Annotated[Any, AfterValidator(_check_texts), WithJsonSchema(_ONE_OR_MANY)]


class PairsBody(VllmBody):
    """One query with one or several documents, or N queries with N documents."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"queries": "2+2?", "documents": ["4", "5"]}]}
    )
    queries: Texts = None
    documents: Texts = None
    items: Texts = None
    data_1: Texts = None
    data_2: Texts = None
    text_1: Texts = None
    text_2: Texts = None

    @model_validator(mode="after")
    def _check_pairs(self) -> PairsBody:
        given = {field for field in _FIELDS if field in self.model_fields_set}
        if given not in [set(pair) for pair in _FIELD_PAIRS]:
            pairs = "; ".join(f"`{first}` and `{second}`" for first, second in _FIELD_PAIRS)
            raise ValueError(f"give exactly one of these pairs of fields: {pairs}")
        num_queries, num_documents = map(len, self._get_given())
        if num_queries not in (1, num_documents) and num_queries and num_documents:
            raise ValueError(
                f"{num_queries} queries and {num_documents} documents: give 1:1, 1:N or N:N"
            )
        return self

    def get_sides(self) -> tuple[list[Any], list[Any]]:
        """Return queries and documents, of equal length."""
        queries, documents = self._get_given()
        if not queries or not documents:
            raise EmptyInputError("At least one text must be given on each side")
        if len(queries) == 1:
            return queries * len(documents), documents
        return queries, documents

    def _get_given(self) -> tuple[list[Any], list[Any]]:
        first, second = next(p for p in _FIELD_PAIRS if set(p) <= self.model_fields_set)
        return _to_list(getattr(self, first)), _to_list(getattr(self, second))


class RerankBody(VllmBody):
    """Documents that answer one query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "2+2?", "documents": ["5", "4"]}]}
    )
    query: Text
    documents: Texts = Field(description="each a text, or an object with a text")
    top_n: int = Field(
        default=0, description="number of best documents to return; 0: all documents"
    )


class PairScore(BaseModel):
    """One score, in vLLM's format."""

    index: int
    object: str = "score"
    score: float


class PairsResponse(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: str
    created: int
    model: str
    data: list[PairScore]
    usage: dict[str, Any]


class _PairsErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class PairsErrorResponse(BaseModel):
    """An error in vLLM's format: `code` is the status."""

    error: _PairsErrorBody


@router.post("/score", summary="Score pairs of texts as vLLM does")
async def score(body: PairsBody, service: ServiceDep) -> JSONResponse:
    """Return the reward of each document as the answer to its query."""
    scored = await _compute_pair_rewards(service, body, *body.get_sides())
    data = [
        {"index": i, "object": "score", "score": value}
        for i, value in enumerate(body.apply_activation(scored))
    ]
    content = {
        **build_envelope(body.build_response_id("score"), scored),
        "data": data,
        "usage": build_usage(scored),
    }
    return build_response(content, scored)


@router.post("/v1/rerank", summary="Rank documents as vLLM does")
@router.post("/v2/rerank", summary="Rank documents as vLLM does")
async def rerank(body: RerankBody, service: ServiceDep) -> JSONResponse:
    """Return the documents, the best answer to the query first."""
    documents = _to_list(body.documents)
    if not documents:
        raise EmptyInputError("At least one document must be given")
    scored = await _compute_pair_rewards(service, body, [body.query] * len(documents), documents)
    results = [
        {
            "index": i,
            "document": {"text": document if isinstance(document, str) else None}
            | {"multi_modal": None if isinstance(document, str) else document},
            "relevance_score": value,
        }
        for i, (document, value) in enumerate(
            zip(documents, body.apply_activation(scored), strict=True)
        )
    ]
    results.sort(key=lambda result: -float(str(result["relevance_score"])))
    content = {
        "id": body.build_response_id("score"),
        "model": scored.model,
        "usage": {"prompt_tokens": scored.num_tokens, "total_tokens": scored.num_tokens},
        "results": results[: body.top_n] if body.top_n > 0 else results,
    }
    return build_response(content, scored)


async def _compute_pair_rewards(
    service: ScoringService, body: VllmBody, queries: list[Any], documents: list[Any]
) -> CompatResult:
    conversations = [
        [
            {"role": "user", "content": _content(query)},
            {"role": "assistant", "content": _content(document)},
        ]
        for query, document in zip(queries, documents, strict=True)
    ]
    scored = await compute_rewards(service, body.model, conversations, body.get_options())
    scored.headers[INPUT_HEADER] = AS_TURNS
    return scored


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _content(value: Any) -> Any:
    return value.get("content", value.get("text")) if isinstance(value, dict) else value
