"""text-embeddings-inference's `/predict`, with raw scores where nothing else is asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, ConfigDict, Field, StrictBool, WithJsonSchema

from rm_core import Rendered
from serve.problems import shaped_responses
from serve.routes.dependencies import ServiceDep
from serve.routes.json_route import JsonRoute
from serve.routes.native import sigmoid
from serve.routes.peers import (
    INPUT_HEADER,
    EmptyInputError,
    How,
    ModelInQuery,
    PeerBody,
    answer,
    score_all,
)

router = APIRouter(tags=["TEI"], responses=shaped_responses(), route_class=JsonRoute)

RAW_HEADER = "x-skyreward-raw-scores"
_PAIR = "conversation:first-as-user,second-as-assistant"
_TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


def _is_one(value: object) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and _are_texts(value)


def _are_texts(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value)


def _checked(value: object) -> object:
    if isinstance(value, str) or value == []:
        return value
    if isinstance(value, list) and _are_texts(value):
        if len(value) == 2:
            return value
        raise ValueError(
            f"a list of {len(value)} strings is neither a pair nor a batch; a batch is a list of "
            'lists: [["text"], ["text"]]'
        )
    if isinstance(value, list) and all(map(_is_one, value)):
        return value
    raise ValueError('must be a string, a pair of them, or a batch: a list of ["text"] or of pairs')


_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
PredictInputs = Annotated[
    Any,
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {**_STRINGS, "minItems": 2, "maxItems": 2},
                {"type": "array", "items": {**_STRINGS, "minItems": 1, "maxItems": 2}},
            ]
        }
    ),
]


class PredictBody(PeerBody):
    """Texts that the client templated, or pairs of a question and its answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [[_TEXT]]}]})
    model: str | None = None
    inputs: PredictInputs
    truncate: StrictBool | None = Field(
        default=None, description="true: cut what is too long; else it is refused"
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    raw_scores: StrictBool | None = Field(
        default=None, description="false: the sigmoid of the reward; else the raw reward"
    )


@router.post("/", include_in_schema=False)  # as there, for clients that are given the address alone
@router.post("/predict", summary="Score as text-embeddings-inference does")
async def predict(
    body: PredictBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """The reward of each as its score; a list in a list for a batch."""
    if not body.inputs:
        raise EmptyInputError("`inputs` cannot be empty")
    single = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
    items = [_conversation(item) for item in ([body.inputs] if single else body.inputs)]
    side: Any = body.truncation_direction.lower()
    how = How(side if body.truncate else "error")
    scored = await score_all(service, model if model is not None else body.model, items, how)
    raw = body.raw_scores is not False
    asked = "default" if body.raw_scores is None else "as asked"
    scored.headers[RAW_HEADER] = f"{str(raw).lower()} ({asked})"
    if any(isinstance(item, list) for item in items):
        scored.headers[INPUT_HEADER] = scored.headers[INPUT_HEADER].replace("conversation", _PAIR)
    scored.headers["x-compute-tokens"] = str(scored.num_tokens)
    predictions = [
        [{"score": r.reward if raw else sigmoid(r.reward), "label": "LABEL_0"}]
        for r in scored.results
    ]
    return answer(predictions[0] if single else predictions, scored)


def _conversation(item: str | list[str]) -> Any:
    if isinstance(item, str) or len(item) == 1:
        return Rendered(item if isinstance(item, str) else item[0])
    question, reply = item
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
