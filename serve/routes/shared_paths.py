"""Paths that two wire formats have: told apart by the keys of the body.

`/classify` is SGLang's with `text` or `input_ids`, and else vLLM's. `/v1/score` is our own, and
vLLM's with one of its pairs of names.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Discriminator, Tag

from serve import problems
from serve.problems import Shape, shaped_responses
from serve.routes import native, rerank, sglang, shapes, vllm
from serve.routes.dependencies import ServiceDep
from serve.routes.json_route import JsonRoute
from serve.routes.peers import FORM, ModelInQuery
from serve.schemas import ScoreRequest, ScoreResponse

_HELLO: list[Any] = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


class _Messages(vllm.MessagesBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _HELLO}]})


def _form_of_classify(body: Any) -> str:
    if isinstance(body, dict) and ("text" in body or "input_ids" in body):
        return FORM + "sglang"
    return vllm.form_of(body)


def _form_of_score(body: Any) -> str:
    theirs = isinstance(body, dict) and "conversations" not in body and rerank.has_pairs(body)
    return FORM + ("pairs" if theirs else "native")


Classify = Annotated[
    Annotated[_Messages, Tag(FORM + "messages")]
    | Annotated[vllm.TextsBody, Tag(FORM + "texts")]
    | Annotated[sglang.NativeClassify, Tag(FORM + "sglang")],
    Discriminator(_form_of_classify),
]
Score = Annotated[
    Annotated[ScoreRequest, Tag(FORM + "native")] | Annotated[rerank.Pairs, Tag(FORM + "pairs")],
    Discriminator(_form_of_score),
]


class _ClassifyRoute(JsonRoute):
    def shape_for(self, body: Any) -> Shape | None:
        ours = _form_of_classify(body) == FORM + "sglang"
        return shapes.sglang_native if ours else None


class _ScoreRoute(JsonRoute):
    def shape_for(self, body: Any) -> Shape | None:
        return shapes.vllm if _form_of_score(body) == FORM + "pairs" else None


router = APIRouter(tags=["vLLM", "SGLang"], route_class=_ClassifyRoute)
native_router = APIRouter(tags=["scoring"], route_class=_ScoreRoute)


@router.post("/classify", summary="Score as vLLM or SGLang do", responses=shaped_responses())
async def classify(body: Classify, service: ServiceDep, model: ModelInQuery = None) -> JSONResponse:
    """Raw rewards: `data[i].probs[0]` for vLLM's clients, `[i].embedding[0]` for SGLang's."""
    if isinstance(body, sglang.NativeClassify):
        return await sglang.classify(body, service, model)
    return await vllm.classify(body, service)


@native_router.post(
    "/v1/score",
    response_model=ScoreResponse | rerank.PairsResponse,
    responses=problems.responses(),
    summary="Score conversations",
)
async def score(body: Score, service: ServiceDep) -> JSONResponse:
    """Rewards in the order of the conversations; one that cannot be scored gets an `error`.

    vLLM's form of this path is taken too: see `/score`.
    """
    if isinstance(body, ScoreRequest):
        return await native.score(body, service)
    return await rerank.score_pairs(body, service)
