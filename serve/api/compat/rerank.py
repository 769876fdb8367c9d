"""vLLM's `/score` and `/rerank`: each query is the user's turn, each document the assistant's.

Without a template, as vLLM scores such pairs, a chat reward model gives numbers without a meaning.
What was made of them stands in the header `x-skyreward-input`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from serve.api.compat.common import (
    INPUT_HEADER,
    Scored,
    Truncating,
    answer,
    envelope,
    score_all,
    usage,
)
from serve.api.dependencies import ServiceDep
from serve.api.error_responses import shaped_responses
from serve.api.json_route import JsonRoute
from serve.errors import EmptyInputError
from serve.scoring.service import ScoringService

router = APIRouter(tags=["vLLM"], responses=shaped_responses(), route_class=JsonRoute)

AS_TURNS = "conversation:query-as-user,document-as-assistant"

_PAIRS_OF_NAMES = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)
_NAMES = sorted({name for pair in _PAIRS_OF_NAMES for name in pair})


def has_pairs(body: dict[str, Any]) -> bool:
    """Whether a body has a name of vLLM's pairs."""
    return any(name in body for name in _NAMES)


def _is_text(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("content", value.get("text")), str | list)
    return isinstance(value, str)


def _checked(value: object) -> object:
    if _is_text(value) or (isinstance(value, list) and all(map(_is_text, value))):
        return value
    raise ValueError('must be a string, {"content": [text parts]}, or a list of these')


def _one(value: object) -> object:
    if _is_text(value):
        return value
    raise ValueError('must be one text: a string, or {"content": [text parts]}')


_TEXT: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object"}]}
_ONE_OR_MANY: dict[str, Any] = {
    "anyOf": [*_TEXT["anyOf"], {"type": "array", "items": _TEXT, "minItems": 1}]
}
Text = Annotated[Any, AfterValidator(_one), WithJsonSchema(_TEXT)]
Texts = Annotated[Any, AfterValidator(_checked), WithJsonSchema(_ONE_OR_MANY)]


class Pairs(Truncating):
    """One query with one or many documents, or as many of each, under one pair of names."""

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
    def _one_pair(self) -> Pairs:
        named = {name for name in _NAMES if name in self.model_fields_set}
        if named not in [set(pair) for pair in _PAIRS_OF_NAMES]:
            either = "; ".join(f"`{one}` and `{other}`" for one, other in _PAIRS_OF_NAMES)
            raise ValueError(f"give one of these pairs and nothing of another: {either}")
        return self

    def sides(self) -> tuple[list[Any], list[Any]]:
        """Queries and documents."""
        names = next(p for p in _PAIRS_OF_NAMES if set(p) <= self.model_fields_set)
        first, second = (_listed(getattr(self, name)) for name in names)
        if not first or not second:
            raise EmptyInputError("At least one text must be given on each side")
        if len(first) == 1:
            return first * len(second), second
        return first, second

    @model_validator(mode="after")
    def _same_number(self) -> Pairs:
        names = next(p for p in _PAIRS_OF_NAMES if set(p) <= self.model_fields_set)
        first, second = (len(_listed(getattr(self, name))) for name in names)
        if first not in (1, second) and first and second:
            raise ValueError(f"{first} queries and {second} documents: give 1:1, 1:N or N:N")
        return self


class RerankBody(Truncating):
    """Documents that answer one query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "2+2?", "documents": ["5", "4"]}]}
    )
    query: Text
    documents: Texts = Field(description="each a text, or an object with one")
    top_n: int = Field(default=0, description="how many of the best are answered; 0: all")


class PairScore(BaseModel):
    """One of vLLM's scores."""

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
    """An error in vLLM's shape: its code is the status."""

    error: _PairsErrorBody


async def score_pairs(body: Pairs, service: ScoringService) -> JSONResponse:
    """The reward of each pair."""
    scored = await _score(service, body, *body.sides())
    data = [
        {"index": i, "object": "score", "score": value}
        for i, value in enumerate(body.values(scored))
    ]
    content = {**envelope(body.answer_id("score"), scored), "data": data, "usage": usage(scored)}
    return answer(content, scored)


@router.post("/score", summary="Score pairs of texts as vLLM does")
async def score(body: Pairs, service: ServiceDep) -> JSONResponse:
    """The reward of each document as the answer to its query."""
    return await score_pairs(body, service)


@router.post("/v1/rerank", summary="Rank documents as vLLM does")
@router.post("/v2/rerank", summary="Rank documents as vLLM does")
async def rerank(body: RerankBody, service: ServiceDep) -> JSONResponse:
    """Documents, the best answer to the query first."""
    return await rank_documents(body, service)


async def rank_documents(body: RerankBody, service: ScoringService) -> JSONResponse:
    """The same, for `POST /rerank`, which is routed by `serve.api.compat.shared_paths`."""
    documents = _listed(body.documents)
    if not documents:
        raise EmptyInputError("At least one document must be given")
    scored = await _score(service, body, [body.query] * len(documents), documents)
    results = [
        {
            "index": i,
            "document": {"text": document if isinstance(document, str) else None}
            | {"multi_modal": None if isinstance(document, str) else document},
            "relevance_score": value,
        }
        for i, (document, value) in enumerate(zip(documents, body.values(scored), strict=True))
    ]
    results.sort(key=lambda result: -float(str(result["relevance_score"])))
    content = {
        "id": body.answer_id("score"),
        "model": scored.model,
        "usage": {"prompt_tokens": scored.num_tokens, "total_tokens": scored.num_tokens},
        "results": results[: body.top_n] if body.top_n > 0 else results,
    }
    return answer(content, scored)


async def _score(
    service: ScoringService, body: Truncating, queries: list[Any], documents: list[Any]
) -> Scored:
    conversations = [
        [
            {"role": "user", "content": _content(query)},
            {"role": "assistant", "content": _content(document)},
        ]
        for query, document in zip(queries, documents, strict=True)
    ]
    scored = await score_all(service, body.model, conversations, body.how())
    scored.headers[INPUT_HEADER] = AS_TURNS
    return scored


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _content(value: Any) -> Any:
    return value.get("content", value.get("text")) if isinstance(value, dict) else value
