"""vLLM's `/score` and `/rerank`: each query is the user's turn, each document the assistant's.

vLLM scores such pairs without a chat template, for which a chat reward model returns meaningless
numbers. The header `x-skyreward-input` reports how the texts were interpreted.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from serve.api.compat.common import (
    INPUT_HEADER,
    CompatResult,
    VllmBody,
    build_envelope,
    build_response,
    build_usage,
    compute_rewards,
)
from serve.api.dependencies import ServiceDep
from serve.api.error_responses import build_compat_error_docs
from serve.api.json_route import JsonRoute
from serve.errors import EmptyInputError
from serve.scoring.service import ScoringService

router = APIRouter(tags=["vLLM"], responses=build_compat_error_docs(), route_class=JsonRoute)

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
    raise ValueError('must be a string, {"content": [text parts]}, or a list of these')


def _check_text(value: object) -> object:
    if _is_text(value):
        return value
    raise ValueError('must be one text: a string, or {"content": [text parts]}')


_TEXT: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object"}]}
_ONE_OR_MANY: dict[str, Any] = {
    "anyOf": [*_TEXT["anyOf"], {"type": "array", "items": _TEXT, "minItems": 1}]
}
Text = Annotated[Any, AfterValidator(_check_text), WithJsonSchema(_TEXT)]
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
    def _check_fields(self) -> PairsBody:
        given = {field for field in _FIELDS if field in self.model_fields_set}
        if given not in [set(pair) for pair in _FIELD_PAIRS]:
            pairs = "; ".join(f"`{first}` and `{second}`" for first, second in _FIELD_PAIRS)
            raise ValueError(f"give exactly one of these pairs of fields: {pairs}")
        return self

    def get_sides(self) -> tuple[list[Any], list[Any]]:
        """Return queries and documents, of equal length."""
        pair = next(p for p in _FIELD_PAIRS if set(p) <= self.model_fields_set)
        queries, documents = (_to_list(getattr(self, field)) for field in pair)
        if not queries or not documents:
            raise EmptyInputError("At least one text must be given on each side")
        if len(queries) == 1:
            return queries * len(documents), documents
        return queries, documents

    @model_validator(mode="after")
    def _check_lengths(self) -> PairsBody:
        pair = next(p for p in _FIELD_PAIRS if set(p) <= self.model_fields_set)
        num_queries, num_documents = (len(_to_list(getattr(self, field))) for field in pair)
        if num_queries not in (1, num_documents) and num_queries and num_documents:
            raise ValueError(
                f"{num_queries} queries and {num_documents} documents: give 1:1, 1:N or N:N"
            )
        return self


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


async def score_pairs(body: PairsBody, service: ScoringService) -> JSONResponse:
    """Return the reward of each pair."""
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


@router.post("/score", summary="Score pairs of texts as vLLM does")
async def score(body: PairsBody, service: ServiceDep) -> JSONResponse:
    """Return the reward of each document as the answer to its query."""
    return await score_pairs(body, service)


@router.post("/v1/rerank", summary="Rank documents as vLLM does")
@router.post("/v2/rerank", summary="Rank documents as vLLM does")
async def rerank(body: RerankBody, service: ServiceDep) -> JSONResponse:
    """Return the documents, the best answer to the query first."""
    return await rank_documents(body, service)


async def rank_documents(body: RerankBody, service: ScoringService) -> JSONResponse:
    """Handle vLLM's `POST /rerank`, which `serve.api.compat.shared_paths` routes here."""
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
