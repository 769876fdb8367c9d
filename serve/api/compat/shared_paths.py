"""Paths that two wire formats share: the fields of the body determine the format.

`/classify` is SGLang's with `text` or `input_ids`, otherwise vLLM's. `/v1/score` is vLLM's with a
field of its pairs, otherwise native. `/rerank` is text-embeddings-inference's with `texts`,
otherwise vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Discriminator, Tag

from serve.api import error_responses
from serve.api.compat import errors, rerank, sglang, tei, vllm
from serve.api.compat.common import FORM_TAG_PREFIX, ModelInQuery
from serve.api.dependencies import ServiceDep
from serve.api.error_responses import ErrorFormat, build_compat_error_docs
from serve.api.json_route import JsonRoute
from serve.api.routes import scoring
from serve.api.schemas import ErrorResponse, ScoreRequest, ScoreResponse

_HELLO: list[Any] = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


class _Messages(vllm.MessagesBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _HELLO}]})


def _select_classify_form(body: Any) -> str:
    if isinstance(body, dict) and ("text" in body or "input_ids" in body):
        return FORM_TAG_PREFIX + "sglang"
    return vllm.select_form(body)


def _select_score_form(body: Any) -> str:
    is_native = isinstance(body, dict) and ("conversations" in body or "messages" in body)
    is_vllm = isinstance(body, dict) and not is_native and rerank.has_pairs(body)
    return FORM_TAG_PREFIX + ("pairs" if is_vllm else "native")


def _select_rerank_form(body: Any) -> str:
    is_tei = isinstance(body, dict) and "texts" in body and "documents" not in body
    return FORM_TAG_PREFIX + ("texts" if is_tei else "documents")


Classify = Annotated[
    Annotated[_Messages, Tag(FORM_TAG_PREFIX + "messages")]
    | Annotated[vllm.TextsBody, Tag(FORM_TAG_PREFIX + "texts")]
    | Annotated[sglang.SglangClassifyBody, Tag(FORM_TAG_PREFIX + "sglang")],
    Discriminator(_select_classify_form),
]
Score = Annotated[
    Annotated[ScoreRequest, Tag(FORM_TAG_PREFIX + "native")]
    | Annotated[rerank.PairsBody, Tag(FORM_TAG_PREFIX + "pairs")],
    Discriminator(_select_score_form),
]
Rerank = Annotated[
    Annotated[rerank.RerankBody, Tag(FORM_TAG_PREFIX + "documents")]
    | Annotated[tei.RerankTexts, Tag(FORM_TAG_PREFIX + "texts")],
    Discriminator(_select_rerank_form),
]


def _build_score_error_docs() -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors of `/v1/score`, whose format depends on the body."""
    model = ErrorResponse | rerank.PairsErrorResponse
    return {
        status: {**docs, "model": model}
        for status, docs in error_responses.build_error_docs().items()
    }


class _ClassifyRoute(JsonRoute):
    def error_format_for(self, body: Any) -> ErrorFormat | None:
        is_sglang = _select_classify_form(body) == FORM_TAG_PREFIX + "sglang"
        return errors.format_sglang_native_error if is_sglang else None


class _ScoreRoute(JsonRoute):
    def error_format_for(self, body: Any) -> ErrorFormat | None:
        return (
            errors.format_vllm_error
            if _select_score_form(body) == FORM_TAG_PREFIX + "pairs"
            else None
        )


class _RerankRoute(JsonRoute):
    def error_format_for(self, body: Any) -> ErrorFormat | None:
        return (
            errors.format_tei_error
            if _select_rerank_form(body) == FORM_TAG_PREFIX + "texts"
            else None
        )


rerank_router = APIRouter(tags=["vLLM", "TEI"], route_class=_RerankRoute)
router = APIRouter(tags=["vLLM", "SGLang"], route_class=_ClassifyRoute)
native_router = APIRouter(tags=["scoring"], route_class=_ScoreRoute)


@router.post("/classify", summary="Score as vLLM or SGLang do", responses=build_compat_error_docs())
async def classify(body: Classify, service: ServiceDep, model: ModelInQuery = None) -> JSONResponse:
    """Return raw rewards: `data[i].probs[0]` for vLLM, `[i].embedding[0]` for SGLang."""
    if isinstance(body, sglang.SglangClassifyBody):
        return await sglang.classify(body, service, model)
    return await vllm.classify(body, service)


@native_router.post(
    "/v1/score",
    response_model=ScoreResponse | rerank.PairsResponse,
    responses=_build_score_error_docs(),
    summary="Score conversations",
)
async def score(body: Score, service: ServiceDep) -> JSONResponse:
    """Return rewards in the order of the conversations, or an `error` in place of a reward.

    This path also accepts vLLM's body: see `/score`.
    """
    if isinstance(body, ScoreRequest):
        return await scoring.score(body, service)
    return await rerank.score_pairs(body, service)


@rerank_router.post(
    "/rerank", summary="Rank as vLLM or TEI do", responses=build_compat_error_docs()
)
async def rank(body: Rerank, service: ServiceDep, model: ModelInQuery = None) -> JSONResponse:
    """Return the best answer first: `results` for vLLM, a list for TEI (body with `texts`)."""
    if isinstance(body, tei.RerankTexts):
        return await tei.rerank(body, service, model)
    return await rerank.rank_documents(body, service)
