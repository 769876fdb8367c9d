"""Paths that two wire formats share: the fields of the body determine the format.

`/classify` is SGLang's with `text` or `input_ids`, otherwise vLLM's. `/v1/score` is SGLang's with
`score_extraction_token`, vLLM's with a field of its pairs, otherwise native. `/rerank` is
text-embeddings-inference's with `texts`, otherwise vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Discriminator, Tag

from serve.api import error_responses
from serve.api.compat import errors, sglang, tei, vllm
from serve.api.compat.common import EXAMPLE_CHAT, FORM_TAG_PREFIX, ModelInQuery
from serve.api.error_responses import ErrorFormat, build_compat_error_docs
from serve.api.routes import scoring
from serve.api.routing import JsonRoute, ServiceDep
from serve.api.schemas import ErrorResponse, ModelsScoreResponse, ScoreRequest, ScoreResponse

_SGLANG, _NATIVE, _PAIRS, _DOCUMENTS, _TEI, _AT_TOKEN = (
    FORM_TAG_PREFIX + name for name in ("sglang", "native", "pairs", "documents", "tei", "at-token")
)


class _Messages(vllm.MessagesBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": EXAMPLE_CHAT}]})


def _select_classify_form(body: Any) -> str:
    if isinstance(body, dict) and ("text" in body or "input_ids" in body):
        return _SGLANG
    return vllm.select_form(body)


def _select_score_form(body: Any) -> str:
    is_native = isinstance(body, dict) and ("conversations" in body or "messages" in body)
    if isinstance(body, dict) and body.get("score_extraction_token") is not None:
        return _AT_TOKEN
    is_vllm = isinstance(body, dict) and not is_native and vllm.has_pairs(body)
    return _PAIRS if is_vllm else _NATIVE


def _select_rerank_form(body: Any) -> str:
    is_tei = isinstance(body, dict) and "texts" in body and "documents" not in body
    return _TEI if is_tei else _DOCUMENTS


Classify = Annotated[
    Annotated[_Messages, Tag(FORM_TAG_PREFIX + "messages")]
    | Annotated[vllm.TextsBody, Tag(FORM_TAG_PREFIX + "texts")]
    | Annotated[sglang.SglangClassifyBody, Tag(_SGLANG)],
    Discriminator(_select_classify_form),
]
Score = Annotated[
    Annotated[ScoreRequest, Tag(_NATIVE)]
    | Annotated[vllm.PairsBody, Tag(_PAIRS)]
    | Annotated[sglang.SglangScoreBody, Tag(_AT_TOKEN)],
    Discriminator(_select_score_form),
]
Rerank = Annotated[
    Annotated[vllm.RerankBody, Tag(_DOCUMENTS)] | Annotated[tei.RerankTexts, Tag(_TEI)],
    Discriminator(_select_rerank_form),
]
_SELECTORS: Mapping[str, Callable[[Any], str]] = {
    "/classify": _select_classify_form,
    "/v1/score": _select_score_form,
    "/rerank": _select_rerank_form,
}
# Of the other forms, the path determines the format of errors.
_ERROR_FORMATS: Mapping[str, ErrorFormat] = {
    _SGLANG: errors.format_sglang_native_error,
    _PAIRS: errors.format_vllm_error,
    _AT_TOKEN: errors.format_sglang_error,
    _TEI: errors.format_tei_error,
}


class _SharedRoute(JsonRoute):
    def error_format_for(self, body: Any) -> ErrorFormat | None:
        return _ERROR_FORMATS.get(_SELECTORS[self.path](body))


def _build_score_error_docs() -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors of `/v1/score`, whose format depends on the body."""
    model = ErrorResponse | vllm.PairsErrorResponse | sglang.SglangErrorResponse
    return {
        status: {**docs, "model": model}
        for status, docs in error_responses.build_error_docs().items()
    }


router = APIRouter(route_class=_SharedRoute)


@router.post(
    "/v1/score",
    tags=["scoring"],
    response_model=ScoreResponse
    | ModelsScoreResponse
    | vllm.PairsResponse
    | sglang.SglangScoreResponse,
    responses=_build_score_error_docs(),
    summary="Score conversations",
)
async def score(body: Score, service: ServiceDep) -> JSONResponse:
    """Return rewards in the order of the conversations, or an `error` in place of a reward.

    With `models`, each result has the rewards of several models. This path also accepts vLLM's
    body, see `/score`, and SGLang's with `score_extraction_token`.
    """
    if isinstance(body, sglang.SglangScoreBody):
        return await sglang.score_at_token(body, service)
    if isinstance(body, ScoreRequest):
        return await scoring.score(body, service)
    return await vllm.score(body, service)


@router.post(
    "/classify",
    tags=["vLLM", "SGLang"],
    responses=build_compat_error_docs(),
    summary="Score as vLLM or SGLang do",
)
async def classify(body: Classify, service: ServiceDep, model: ModelInQuery = None) -> JSONResponse:
    """Return raw rewards: `data[i].probs[0]` for vLLM, `[i].embedding[0]` for SGLang."""
    if isinstance(body, sglang.SglangClassifyBody):
        return await sglang.classify(body, service, model)
    return await vllm.classify(body, service)


@router.post(
    "/rerank",
    tags=["vLLM", "TEI"],
    responses=build_compat_error_docs(),
    summary="Rank as vLLM or TEI do",
)
async def rank(body: Rerank, service: ServiceDep, model: ModelInQuery = None) -> JSONResponse:
    """Return the best answer first: `results` for vLLM, a list for TEI (body with `texts`)."""
    if isinstance(body, tei.RerankTexts):
        return await tei.rerank(body, service, model)
    return await vllm.rerank(body, service)
