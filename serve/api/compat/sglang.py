"""SGLang's `/classify`, which the Skywork model cards use, and its `/v1/embeddings`.

vLLM has the path `/classify` too; `serve.api.compat.shared_paths` routes it.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rm_core import PrerenderedText, sigmoid
from serve.api.compat.common import (
    EXAMPLE_TEXT,
    CompatBody,
    Inputs,
    ModelInQuery,
    ScoringOptions,
    TextList,
    build_response,
    build_usage,
    compute_rewards,
    create_router,
    encode_base64,
    is_single,
    parse_inputs,
    resolve_model_name,
)
from serve.api.error_responses import truncate_for_message
from serve.api.routing import ServiceDep
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.telemetry.logging import current_request

router = create_router("SGLang")


class SglangClassifyBody(CompatBody):
    """Texts that the client rendered, or token ids.

    `model` may be any name if only one model is served, as in SGLang.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": [EXAMPLE_TEXT]}]})
    model: str | None = None
    text: Inputs = Field(default=None, description="one text, or a list of texts")
    input_ids: Inputs = Field(
        default=None, description="token ids of one text, or a list of such lists"
    )
    rid: str | TextList | None = None
    image_data: Any = Field(default=None, description="rejected; send images in messages")

    @model_validator(mode="after")
    def _check_exactly_one(self) -> SglangClassifyBody:
        if self.image_data:
            raise ValueError(
                "`image_data` is not read; send images as content parts of `messages`, to this "
                "path in vLLM's form or to /v1/score"
            )
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either `text` or `input_ids`")
        if isinstance(self.input_ids, str) or _has_texts(self.input_ids):
            raise ValueError("`input_ids` must be token ids")
        if self.text and not (isinstance(self.text, str) or _has_texts(self.text)):
            raise ValueError("`text` must be a string or a list of strings")
        return self


class EmbeddingBody(CompatBody):
    """Texts or token ids, as OpenAI's clients and verl send them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": EXAMPLE_TEXT}]})
    model: str | None = None
    input: Inputs = Field(description="texts that the client rendered, or token ids")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = Field(default=None, description="not supported: a reward is a single number")


async def classify(
    body: SglangClassifyBody, service: ScoringService, name: str | None = None
) -> JSONResponse:
    """Return the reward of each input in `embedding`: one object for a single input, or a list."""
    started_at = time.perf_counter()
    inputs = body.input_ids if body.text is None else body.text
    name = resolve_model_name(service, name, body.model)
    scored = await compute_rewards(service, name, parse_inputs(inputs))
    elapsed_s = time.perf_counter() - started_at
    rids = body.rid if isinstance(body.rid, list) else [body.rid] * len(scored.results)
    results = [
        {
            "embedding": [result.reward],
            "meta_info": {
                "id": (rids[i] if i < len(rids) else None) or f"{current_request().id}-{i}",
                "finish_reason": {"type": "length", "length": 0},
                "prompt_tokens": result.num_tokens,
                "weight_version": scored.version or "default",
                "num_retractions": 0,
                "e2e_latency": elapsed_s,
            },
        }
        for i, result in enumerate(scored.results)
    ]
    return build_response(results[0] if is_single(inputs) else results, scored)


@router.post("/v1/embeddings", summary="Score as SGLang's embeddings do")
async def embeddings(
    body: EmbeddingBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """Return the reward of each input, as an embedding of one number.

    A step model returns its raw output at every token of the token ids, as its authors' server
    does: the client applies the sigmoid at the markers.
    """
    name = resolve_model_name(service, model, body.model)
    inputs = parse_inputs(body.input)
    every_token = service.resolve_model(name).encoder.kind == "step"
    if every_token and any(isinstance(item, PrerenderedText) for item in inputs):
        raise BadRequestError(
            "`input` has texts, and a step model reads token ids here; send token ids, or the "
            "problem and its solution to /v1/steps"
        )
    scored = await compute_rewards(service, name, inputs, ScoringOptions(every_token=every_token))
    data: list[dict[str, Any]] = []
    for i, result in enumerate(scored.results):
        values = list(result.step_rewards) if every_token else [result.reward]
        embedding = values if body.encoding_format == "float" else encode_base64(values)
        data.append({"embedding": embedding, "index": i, "object": "embedding"})
    content = {"data": data, "model": scored.model, "object": "list", "usage": build_usage(scored)}
    return build_response(content, scored)


class SglangScoreBody(CompatBody):
    """Texts or token ids, read at each occurrence of a token, as SGLang's setwise scoring does.

    `model` may be any name if only one model is served, as in SGLang.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "", "items": [EXAMPLE_TEXT], "score_extraction_token": "<|im_end|>"}
            ]
        }
    )
    model: str | None = None
    query: Inputs = Field(default="", description="text or token ids before each item")
    items: Inputs = Field(description="one or several texts or lists of token ids")
    score_extraction_token: str = Field(description="token at which the model is read")
    apply_softmax: bool = Field(
        default=False, description="probabilities of the labels; for step models with two labels"
    )
    item_first: Literal[False] = False
    label_token_ids: None = Field(
        default=None, description="not supported: the labels are those of the model's head"
    )

    def get_conversations(self) -> list[Any]:
        """Return each item after the query."""
        items = [self.items] if is_single(self.items) else self.items
        has_texts = all(isinstance(item, str) for item in items)
        query = self.query or ("" if has_texts else [])
        if (query and not is_single(query)) or isinstance(query, str) != has_texts:
            raise BadRequestError("`query` must be one text for texts, or token ids for token ids")
        return list(parse_inputs([query + item for item in items]))


class SglangScoreResponse(BaseModel):
    """The values of each label at each occurrence of the token, for each item."""

    object: Literal["scoring"] = "scoring"
    model: str
    scores: list[list[list[float]]] = Field(description="`scores[item][occurrence][label]`")
    usage: dict[str, Any]


class SglangErrorResponse(BaseModel):
    """The flat error object of SGLang's routes below `/v1`."""

    object: Literal["error"] = "error"
    message: str
    type: str
    param: str | None = None
    code: int


async def score_at_token(body: SglangScoreBody, service: ScoringService) -> JSONResponse:
    """Return, for each item, the value of each label at each occurrence of the token."""
    model = service.resolve_model(resolve_model_name(service, body.model))
    token = model.encoder.find_token(body.score_extraction_token)
    if token is None:
        raise BadRequestError(
            f"`score_extraction_token` is {truncate_for_message(body.score_extraction_token)!r}, "
            "which is not a token of this model; give the text of one token"
        )
    inputs = body.get_conversations()
    query = body.query or []
    if (body.score_extraction_token if isinstance(query, str) else token) in query:
        raise BadRequestError(
            "`query` contains `score_extraction_token`, which marks places in `items` alone; "
            "remove it from the query"
        )
    if model.encoder.kind == "step" and any(isinstance(item, PrerenderedText) for item in inputs):
        raise BadRequestError(
            "`items` are texts, and a step model reads token ids here; send token ids, or the "
            "problem and its solution to /v1/steps"
        )
    info = model.require_ready()
    has_two_labels = info.step_format not in (None, "skywork", "skywork-prmbench")
    if body.apply_softmax != has_two_labels:
        raise BadRequestError(
            "this model has the difference of two labels, so `apply_softmax` must be true"
            if has_two_labels
            else "this model has one label, whose softmax is always 1; leave `apply_softmax` out"
        )
    alias = model.settings.alias
    scored = await compute_rewards(service, alias, inputs, ScoringOptions(every_token=True))
    scores = []
    for index, (result, ids) in enumerate(zip(scored.results, scored.token_ids, strict=True)):
        values = [v for v, t in zip(result.step_rewards, ids, strict=True) if t == token]
        if not values:
            raise BadRequestError(
                f"item {index} does not contain {body.score_extraction_token!r}; write the token "
                "at each place that is to be read"
            )
        scores.append(
            [[sigmoid(-value), sigmoid(value)] if has_two_labels else [value] for value in values]
        )
    content = {"scores": scores, "model": alias, "usage": build_usage(scored), "object": "scoring"}
    return build_response(content, scored)


def _has_texts(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, str) for item in value)
