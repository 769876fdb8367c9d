"""The calls of a client, defined once for both: what to send, and what becomes of the answers.

Nothing is sent here: `ScoringClient` runs an `Operation` on threads, `AsyncScoringClient` in an
event loop. Each function is a method of both.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from rm_core import Aggregation, InputError, Reward, ScoreError, Truncation, drop_nulls
from rm_core.types import Conversation
from serve.client.base import BaseClient
from serve.client.errors import ServiceError
from serve.client.images import to_wire
from serve.client.responses import (
    Comparison,
    ModelRewards,
    Ranking,
    ResultsWithUsage,
    StepRewards,
    TurnRewards,
    fill_models,
)
from serve.client.sansio import (
    COMPARE_ROUTE,
    JUDGE_ROUTE,
    MODELS_ROUTE,
    RANK_ROUTE,
    RENDER_ROUTE,
    SCORE_ROUTE,
    STEPS_ROUTE,
    TURNS_ROUTE,
    BatchCall,
    ScoringRoute,
    Steps,
    control_model,
    encode_json,
)

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch(Generic[R, T]):
    """A call with many items."""

    call: BatchCall[R]
    read: Callable[[BatchCall[R]], T]  # returns the result, once all shards are done
    progress: bool = False  # whether to show a progress bar


Operation: TypeAlias = Batch[Any, T] | Steps[T]


def copy_documentation(operation: Callable[..., Any], method: Callable[..., Any]) -> None:
    """Give the method of a client the name, signature and docstring of its operation."""
    signature = inspect.signature(operation)
    _, *parameters = signature.parameters.values()
    result = re.sub(r"Operation\[(.*?)\](?= \||$)", r"\1", signature.return_annotation)
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = operation.__name__
    method.__doc__ = operation.__doc__
    vars(method)["__signature__"] = inspect.Signature(
        [receiver, *parameters], return_annotation=result
    )


@overload
def score(
    client: BaseClient,
    conversations: Sequence[Conversation],
    truncation: Truncation = "error",
    *,
    models: None = None,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[list[float]]: ...


@overload
def score(
    client: BaseClient,
    conversations: Sequence[Conversation],
    truncation: Truncation = "error",
    *,
    models: Sequence[str],
    combine: Mapping[str, float] | None = None,
    calibrated: bool = False,
    clip: tuple[float, float] | None = None,
    turns: Literal["last", "all"] = "last",
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[list[ModelRewards]]: ...


def score(
    client: BaseClient,
    conversations: Sequence[Conversation],
    truncation: Truncation = "error",
    *,
    models: Sequence[str] | None = None,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
    **options: Any,
) -> Operation[list[float]] | Operation[list[ModelRewards]]:
    """Return the reward of each conversation, in order.

    Args:
        conversations: lists of messages, or mappings of `messages` and `tools`. Null keys are
            not sent, so that rows of tables can be passed unchanged.
        truncation: what to do with conversations that are too long.
        models: several models that score side by side; see `score_models`.
        tools: tools of conversations without `tools`: JSON schemas of functions, or JSON text.
        aggregation: how a step model's rewards of steps become the reward.
        progress: whether to show a progress bar.
        **options: with `models`: the other options of `score_models`.

    Raises:
        ScoringFailedError: some conversations have no reward; the error names them and holds
            the rewards of the others. With `models`, a failure is in the result instead.
        ServiceError: a whole request failed.
        TypeError: an option is unknown, or needs `models`.
    """
    if models is not None:
        return score_models(
            client,
            conversations,
            models,
            truncation,
            tools=tools,
            aggregation=aggregation,
            progress=progress,
            **options,
        )
    if options:
        raise TypeError(
            f"score() has no option {', '.join(map(repr, options))} without `models`; name the "
            "models, or leave it out"
        )
    call = _build_call(
        client, SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
    )
    return Batch(
        call, lambda call: [reward.reward for reward in call.collect_results_or_raise()], progress
    )


def score_models(
    client: BaseClient,
    conversations: Sequence[Conversation | ScoreError],
    models: Sequence[str],
    truncation: Truncation = "error",
    *,
    combine: Mapping[str, float] | None = None,
    calibrated: bool = False,
    clip: tuple[float, float] | None = None,
    turns: Literal["last", "all"] = "last",
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[list[ModelRewards]]:
    """Return the rewards of several models for each conversation, in order.

    One request has a conversation once, and a model may fail alone.

    Args:
        conversations: see `score`; a `ScoreError` among them becomes the error of each model.
        models: aliases of the models; that of the client is not used.
        truncation: what to do with conversations that are too long.
        combine: weight by model, for the sum `ModelRewards.reward`.
        calibrated: whether `combine` takes the calibrated rewards.
        clip: least and greatest value that `combine` takes of a model, before the weight.
        turns: `all`: also the reward after each message of the assistant, of classifiers.
        tools: see `score`.
        aggregation: see `score`.
        progress: whether to show a progress bar.

    Raises:
        ServiceError: a whole request failed.
    """
    if isinstance(models, str):
        raise TypeError(f"`models` is {models!r}; give a list of names")
    options = {"combine": combine and dict(combine), "clip": clip, "calibrated": calibrated or None}
    call = _build_call(
        client,
        MODELS_ROUTE,
        conversations,
        truncation,
        tools=tools,
        aggregation=aggregation,
        models=list(models),
        turns=turns,
        **{name: value for name, value in options.items() if value is not None},
    )
    return Batch(
        call,
        lambda call: [fill_models(result, models) for result in call.collect_results()],
        progress,
    )


def results(
    client: BaseClient,
    conversations: Sequence[Conversation | ScoreError],
    truncation: Truncation = "error",
    *,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[list[Reward | ScoreError]]:
    """Return a reward or an error for each conversation, in order.

    A `ScoreError` among the conversations is returned in its position. The arguments are
    those of `score`.

    Raises:
        ServiceError: a whole request failed.
    """
    call = _build_call(
        client, SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
    )
    return Batch(call, BatchCall.collect_results, progress)


def score_with_usage(
    client: BaseClient,
    conversations: Sequence[Conversation | ScoreError],
    truncation: Truncation = "error",
    *,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[ResultsWithUsage]:
    """Return what `results` returns, and the number of tokens that were computed for it."""
    call = _build_call(
        client, SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
    )
    return Batch(
        call,
        lambda call: ResultsWithUsage(
            call.collect_results(), call.num_computed_tokens, call.num_cached_tokens
        ),
        progress,
    )


def steps(
    client: BaseClient,
    items: Sequence[Mapping[str, Any] | ScoreError],
    aggregation: Aggregation = "last",
    *,
    progress: bool = False,
) -> Operation[list[StepRewards | ScoreError]]:
    """Return the rewards of the steps of each solution or an error, in order; of a step model.

    Args:
        items: each `prompt` (text or messages) with `response`, which is divided into steps as
            the checkpoint's authors do, or with `steps`, which are taken as they are.
        aggregation: how the rewards of steps become `reward`.
        progress: whether to show a progress bar.

    Raises:
        ServiceError: a whole request failed; `error_code` is `wrong_kind` if the model is not
            a step model.
    """
    call = _build_call(client, STEPS_ROUTE, items, "error", aggregation=aggregation)
    return Batch(call, BatchCall.collect_results, progress)


def judge(
    client: BaseClient,
    pairs: Sequence[Mapping[str, Any] | ScoreError],
    orders: Literal["both", "given"] = "both",
    truncation: Truncation = "error",
    *,
    progress: bool = False,
) -> Operation[list[Comparison | ScoreError]]:
    """Return a judge's verdict on each pair or an error, in order.

    Args:
        pairs: each `prompt`, `chosen` and `rejected`, or two whole conversations.
        orders: `both`: the judge reads the answers of a pair in both orders, and the margin is
            the mean; `given`: with `chosen` first only, for half the tokens.
        truncation: what to do with pairs that are too long.
        progress: whether to show a progress bar.

    Raises:
        ServiceError: a whole request failed, or the model is not a judge.
    """
    call = _build_call(client, JUDGE_ROUTE, pairs, truncation, orders=orders)
    return Batch(call, BatchCall.collect_results, progress)


def score_turns(
    client: BaseClient,
    conversations: Sequence[Conversation | ScoreError],
    truncation: Truncation = "error",
    *,
    tools: Any = None,
    progress: bool = False,
) -> Operation[list[TurnRewards | ScoreError]]:
    """Return the reward after each of the assistant's messages, for each conversation in order.

    The parts of a conversation share their beginnings, so that its tokens are computed once.
    The arguments are those of `score`.

    Raises:
        ServiceError: a whole request failed; `error_code` is `wrong_kind` if the model is not
            a classifier.
    """
    call = _build_call(client, TURNS_ROUTE, conversations, truncation, tools=tools, turns="all")
    return Batch(call, BatchCall.collect_results, progress)


def count_tokens(
    client: BaseClient, conversations: Sequence[Conversation], truncation: Truncation = "error"
) -> Operation[list[int | ScoreError]]:
    """Return the number of tokens of each conversation, or its error, without scoring it.

    Raises:
        ServiceError: a whole request failed.
    """
    call = _build_call(client, RENDER_ROUTE, conversations, truncation)
    return Batch(call, BatchCall.collect_results)


def compare(
    client: BaseClient,
    pairs: Sequence[Mapping[str, Any]],
    truncation: Truncation = "error",
    *,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[list[Comparison]]:
    """Return both rewards of each pair (`prompt`, `chosen`, `rejected`, `tools`), in order.

    A judge gives a verdict on each pair instead of rewards; see `judge`.

    Raises:
        ScoringFailedError: some pairs have no rewards; the error names them and holds the
            results of the others.
        ServiceError: a whole request failed.
    """
    call = _build_call(
        client, COMPARE_ROUTE, pairs, truncation, tools=tools, aggregation=aggregation
    )
    return Batch(call, BatchCall.collect_results_or_raise, progress)


def rank(
    client: BaseClient,
    prompt: str | Conversation | None,
    responses: Sequence[str | Conversation | ScoreError],
    truncation: Truncation = "error",
    *,
    tools: Any = None,
    aggregation: Aggregation = "last",
    progress: bool = False,
) -> Operation[Ranking]:
    """Return rewards and ranks of the answers to one prompt, in the order of the answers.

    A judge compares each answer with all others, so all have to fit into one request.

    Raises:
        ScoringFailedError: some answers have no reward; the error names them and holds the
            rewards of the others.
        ServiceError: a whole request failed.
    """
    call = _build_call(
        client,
        RANK_ROUTE,
        responses,
        truncation,
        tools=tools,
        aggregation=aggregation,
        prompt=prompt,
    )
    return Batch(call, BatchCall.build_ranking, progress)


def sleep(client: BaseClient, level: Literal[1, 2] = 1) -> Operation[list[dict[str, Any]]]:
    """Put the model to sleep at every address, so that others may use its device.

    Args:
        level: 1 keeps the weights in the host's memory, 2 drops them.

    Returns:
        The answer of each address: `state`, `sleep_level`, `seconds`, `freed_bytes`,
        `fingerprint`.

    Raises:
        ServiceError: a request failed; addresses before it have done what was asked.
    """
    return _control(client, "sleep", level=level)


def wake(client: BaseClient) -> Operation[list[dict[str, Any]]]:
    """Wake the model at every address; see `sleep`."""
    return _control(client, "wake")


def reload(
    client: BaseClient, source: str, version: str | None = None
) -> Operation[list[dict[str, Any]]]:
    """Replace the model's weights at every address; see `sleep`.

    The client expects the fingerprint of the new weights from then on.

    Args:
        source: folder that the service can read, or ORG/NAME@REVISION on the hub.
        version: name of the weights in the fingerprint; None: the folder's name or the commit.
    """
    return _control(client, "reload", source=source, version=version)


def post(client: BaseClient, route: str, body: dict[str, Any]) -> Operation[dict[str, Any]]:
    """Post a body with `model` added, and return the response unchanged.

    Raises:
        ServiceError: the request failed.
    """
    content = encode_json(_add_model(client, body)).encode()
    return client._sender.request("POST", route, content)


def get(client: BaseClient, route: str) -> Operation[dict[str, Any]]:
    """Return the JSON object that a GET request to a route returns.

    Raises:
        ServiceError: the request failed.
    """
    return client._sender.request("GET", route)


def _build_call(
    client: BaseClient,
    route: ScoringRoute[R],
    items: Sequence[object],
    truncation: Truncation,
    *,
    tools: Any = None,
    aggregation: Aggregation = "last",
    **body: Any,
) -> BatchCall[R]:
    rest = {**body, "truncation": truncation}
    if tools is not None:
        rest["tools"] = tools
    if aggregation != "last":
        rest["aggregation"] = aggregation
    try:
        rest = {name: to_wire(drop_nulls(value)) for name, value in rest.items()}
    except InputError as error:
        raise ServiceError(error.detail, error_code=error.code) from error
    except RecursionError as error:
        raise ServiceError(f"the request cannot be sent as JSON: {error}") from None
    return BatchCall(route, items, _add_model(client, rest))


def _control(
    client: BaseClient, action: Literal["sleep", "wake", "reload"], **fields: Any
) -> Steps[list[dict[str, Any]]]:
    senders = [client._build_sender(url) for url in client.options.urls]
    body = {name: value for name, value in fields.items() if value is not None}
    answers = yield from control_model(senders, client.options.model, action, body)
    if action == "reload":  # rewards of the new weights are expected from now on
        client.fingerprint = answers[0].get("fingerprint")
    return answers


def _add_model(client: BaseClient, body: dict[str, Any]) -> dict[str, Any]:
    model = client.options.model
    return body if model is None or "models" in body else {"model": model, **body}
