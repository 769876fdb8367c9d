"""OpenRLHF's remote reward model, with all three versions of its body.

A query is the policy's decoded prompt and response, in the policy's chat template and with special
tokens. If that is the reward model's own template, the text is closed as the template closes an
answer, and scored. A text in another template is rejected, or parsed back into turns (setting
`policy_template`).
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, model_validator

from rm_core import InvalidConversationError, PrerenderedText, ScoreError, read_turns
from serve.api.compat.common import (
    INPUT_HEADER,
    AggregationInQuery,
    CompatBody,
    ModelInQuery,
    ScoringOptions,
    TextList,
    build_response,
    compute_rewards,
    create_router,
)
from serve.api.error_responses import build_exception
from serve.api.routing import ServiceDep, SettingsDep
from serve.config.settings import Settings
from serve.errors import BadRequestError, EmptyInputError

router = create_router("OpenRLHF")

_PROMPT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
HINT = (
    "; or name the policy's template in the service's setting `policy_template`, and let the "
    "trainer send `prompts`"
)


class QueryBody(CompatBody):
    """Prompts with the policy's responses, as text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": [f"{_PROMPT}4<|im_end|>"], "prompts": [_PROMPT], "labels": [""]}]
        }
    )
    model: str | None = None
    query: str | TextList = Field(description="prompt and answer, including special tokens")
    prompts: str | TextList | None = Field(default=None, description="prompt of each query")
    labels: Any = Field(default=None, description="ignored")

    @model_validator(mode="after")
    def _check_lengths(self) -> QueryBody:
        if self.prompts is not None and len(_to_list(self.prompts)) != len(_to_list(self.query)):
            raise ValueError("`prompts` and `query` must have the same length")
        return self


@router.post("/get_reward", summary="Score as OpenRLHF's reward model server does")
async def get_reward(
    body: QueryBody,
    service: ServiceDep,
    settings: SettingsDep,
    model: ModelInQuery = None,
    aggregation: AggregationInQuery = "last",
) -> JSONResponse:
    """Return raw rewards, in the order of `query`; of a step model, the aggregate of the steps."""
    if not body.query:
        raise EmptyInputError("`query` is empty; send at least one text")
    name = model if model is not None else body.model
    items = _items(body, settings)
    is_text = isinstance(items[0], PrerenderedText)
    if is_text and service.resolve_model(name).encoder.kind == "step":
        raise BadRequestError(
            "a step model needs the problem and its solution, and `query` is one text that the "
            "policy's chat template rendered; name that template in the service's setting "
            "`policy_template`, and let the trainer send `prompts`"
        )
    options = ScoringOptions(hint=HINT, aggregation=aggregation)
    scored = await compute_rewards(service, name, items, options)
    if not is_text:
        scored.headers[INPUT_HEADER] = f"conversation:from-{settings.policy_template}"
    rewards = [result.reward for result in scored.results]
    content = {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}
    return build_response(content, scored)


def _items(body: QueryBody, settings: Settings) -> list[Any]:
    queries = _to_list(body.query)
    policy = settings.policy_template
    if policy == "none" or body.prompts is None:
        return [PrerenderedText(query, close=True) for query in queries]
    items = []
    for index, (query, prompt) in enumerate(zip(queries, _to_list(body.prompts), strict=True)):
        try:
            items.append(read_turns(query, prompt, policy))
        except InvalidConversationError as error:
            where = f"query {index} of {len(queries)}"
            raise build_exception(ScoreError.from_exception(error), where) from error
    return items


def _to_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
