"""text-embeddings-inference's `/predict` and `/rerank`, with raw scores by default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, ConfigDict, Field, StrictBool, WithJsonSchema

from rm_core import PrerenderedText, sigmoid
from serve.api.compat.common import (
    EXAMPLE_TEXT,
    INPUT_HEADER,
    CompatBody,
    CompatResult,
    ModelInQuery,
    ScoringOptions,
    TextList,
    build_response,
    compute_rewards,
    create_router,
)
from serve.api.routing import ServiceDep
from serve.errors import EmptyInputError
from serve.scoring.service import ScoringService

router = create_router("TEI")

RAW_HEADER = "x-skyreward-raw-scores"
AS_TURNS = "conversation:query-as-user,text-as-assistant"
_PAIR = "conversation:first-as-user,second-as-assistant"


def _is_text_or_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and _are_texts(value)


def _are_texts(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value)


def _check_inputs(value: object) -> object:
    if isinstance(value, str) or value == []:
        return value
    if isinstance(value, list) and _are_texts(value):
        if len(value) == 2:
            return value
        raise ValueError(
            f"a list of {len(value)} strings is neither a pair nor a batch; a batch is a list of "
            'lists: [["text"], ["text"]]'
        )
    if isinstance(value, list) and all(map(_is_text_or_pair, value)):
        return value
    raise ValueError(
        'must be a string, a pair of strings, or a batch: a list of ["text"] or of pairs'
    )


_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
PredictInputs = Annotated[
    Any,
    AfterValidator(_check_inputs),
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


class _TeiBody(CompatBody):
    model: str | None = None
    truncate: StrictBool | None = Field(
        default=None, description="true: truncate texts that are too long; otherwise reject them"
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    raw_scores: StrictBool | None = Field(
        default=None,
        description="false: return the sigmoid of the reward; otherwise the raw reward",
    )

    def get_options(self) -> ScoringOptions:
        """Return the scoring options that correspond to the fields."""
        side: Any = self.truncation_direction.lower()
        return ScoringOptions(side if self.truncate else "error")

    def apply_activation(self, scored: CompatResult) -> list[float]:
        """Return the rewards, or their sigmoids if requested; sets a header that says which."""
        is_raw = self.raw_scores is not False
        source = "default" if self.raw_scores is None else "as asked"
        scored.headers[RAW_HEADER] = f"{str(is_raw).lower()} ({source})"
        scored.headers["x-compute-tokens"] = str(scored.num_tokens)
        rewards = [result.reward for result in scored.results]
        return rewards if is_raw else list(map(sigmoid, rewards))


class PredictBody(_TeiBody):
    """Texts that the client rendered, or pairs of a question and its answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [[EXAMPLE_TEXT]]}]})
    inputs: PredictInputs


class RerankTexts(_TeiBody):
    """Texts that answer one query."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "2+2?", "texts": ["5"]}]})
    query: str
    texts: TextList
    return_text: StrictBool = False


@router.post("/", include_in_schema=False)  # as in TEI, for clients that know only the base URL
@router.post("/predict", summary="Score as text-embeddings-inference does")
async def predict(
    body: PredictBody, service: ServiceDep, model: ModelInQuery = None
) -> JSONResponse:
    """Return the reward of each input as its score; a list of lists for a batch."""
    if not body.inputs:
        raise EmptyInputError("`inputs` cannot be empty")
    is_single = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
    items = [_conversation(item) for item in ([body.inputs] if is_single else body.inputs)]
    name = model if model is not None else body.model
    scored = await compute_rewards(service, name, items, body.get_options())
    if any(isinstance(item, list) for item in items):
        scored.headers[INPUT_HEADER] = scored.headers[INPUT_HEADER].replace("conversation", _PAIR)
    predictions = [
        [{"score": score, "label": "LABEL_0"}] for score in body.apply_activation(scored)
    ]
    return build_response(predictions[0] if is_single else predictions, scored)


async def rerank(body: RerankTexts, service: ScoringService, name: str | None) -> JSONResponse:
    """Return the reward of each text as the answer to the query, the best first.

    Handles `POST /rerank`, which `serve.api.compat.shared_paths` routes here.
    """
    if not body.texts:
        raise EmptyInputError("`texts` cannot be empty")
    items = [_conversation([body.query, text]) for text in body.texts]
    scored = await compute_rewards(
        service, name if name is not None else body.model, items, body.get_options()
    )
    scored.headers[INPUT_HEADER] = AS_TURNS
    ranks: list[dict[str, Any]] = [
        {"index": index, "score": score} | ({"text": text} if body.return_text else {})
        for index, (text, score) in enumerate(
            zip(body.texts, body.apply_activation(scored), strict=True)
        )
    ]
    # As in TEI: sorted, then reversed, so that of equal scores the later one comes first.
    ranks.sort(key=lambda rank: float(rank["score"]))
    return build_response(ranks[::-1], scored)


def _conversation(item: str | list[str]) -> Any:
    if isinstance(item, str) or len(item) == 1:
        return PrerenderedText(item if isinstance(item, str) else item[0])
    question, reply = item
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
