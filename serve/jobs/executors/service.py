"""Executor that scores with running services, through one client with all their addresses.

The client sends what one service refuses or loses to another one, and the job ends only when all
services have refused a request for long enough. All services must serve the same model: this is
checked at the start and in every response.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from rm_core import Fingerprint, Reward, ScoreError, Truncation
from rm_core.inputs.conversations import ChatJson
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from rm_core.text import format_names
from serve.client import AsyncScoringClient, ScoringClient, ServiceError
from serve.client.endpoints import get_display_url
from serve.client.errors import ModelChangedError
from serve.client.responses import Comparison, ResultsWithUsage, StepRewards, read_count
from serve.jobs.executors.base import (
    Executor,
    ScoreBatchResult,
    ScoringModel,
    collect_reward_settings,
)
from serve.jobs.inputs.items import ScoringInput

# Requests of one call to each service. Services batch across requests, so a few fill them.
_CONCURRENCY = 2
_MAX_ITEMS = 128
_MAX_BYTES = 2 * 2**20
_ASK_AGAIN_S = 1.0
_Call: TypeAlias = Callable[[], Awaitable[ResultsWithUsage]]


class ServiceExecutor(Executor):
    """Scores with one or several services that serve one model; see `ExecutorOptions`.

    Raises:
        ServiceError: a URL is invalid.
    """

    drain_timeout_s: float | None = 5.0

    def __init__(
        self,
        urls: Sequence[str],
        model: str | None,
        *,
        api_key: str | None,
        retry_s: float,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__()
        self._addresses = {url: get_display_url(url) for url in urls}
        self._model = model
        self._retry_s = retry_s
        self._options: dict[str, Any] = {
            "api_key": api_key,
            "retry_timeout_s": retry_s,
            "timeout_s": timeout_s,
            "max_items": _MAX_ITEMS,
            "max_bytes": _MAX_BYTES,
            "groups_prompts": True,
        }
        self._served: ScoringModel | None = None
        self._client: AsyncScoringClient | None = None

    def resolve_identity(self) -> dict[str, Any]:
        """Return fingerprint, encoding digest and maximum length of the services' model.

        Raises:
            ServiceError: no service can be reached, or the services differ.
        """
        identities: dict[str, dict[str, Any]] = {}
        last_error: ServiceError | None = None
        for url in self._addresses:
            try:
                # With several services, another service is better than waiting for this one.
                identities[url] = self._query_identity(
                    url, self._retry_s if len(self._addresses) == 1 else 0.0
                )
            except ServiceError as error:
                if not error.retryable:
                    raise
                last_error = error
        if not identities:
            assert last_error
            raise last_error
        (first, identity), *others = identities.items()
        for url, other in others:
            if other != identity:
                differing = ", ".join(k for k in identity if identity[k] != other.get(k))
                raise ServiceError(
                    f"{self._addresses[first]} and {self._addresses[url]} differ in {differing}, "
                    "so their rewards cannot be compared; give services with the same model and "
                    "the same settings"
                )
        return identity

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """Return the model of the services that responded."""
        if self._served is None and fetch:
            self.resolve_identity()
        return self._served

    @property
    def capacity(self) -> int:
        """Number of calls that keeps all services busy while the last requests of one end."""
        return 2 + len(self._addresses)

    def count_tokens(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation, counted by any of the services.

        Raises:
            ServiceError: there are other inputs, for which services have no route.
        """
        chats = _select_chats(conversations)
        if len(chats) < len(conversations):
            raise ServiceError(
                "a service counts the tokens of conversations only, and this input has pairs of a "
                "judge or lists of steps; count them with a local model"
            )
        with ScoringClient(list(self._addresses), self._model, **self._options) as client:
            return client.count_tokens(chats, truncation)

    async def _prepare(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> _Call:
        if self._served is None:
            await asyncio.to_thread(self.resolve_identity)
        assert self._served
        if self._client is None:
            self._client = AsyncScoringClient(
                list(self._addresses),
                self._model,
                **self._options,
                max_concurrency=_CONCURRENCY,
                fingerprint=self._served.fingerprint.as_dict(),
            )
        # Services refuse an option that the model does not read, and protocols may have it.
        truncates = self._served.kind == "classifier"
        return partial(
            _score_inputs, self._client, conversations, truncation if truncates else "error"
        )

    async def _score(self, prepared: _Call) -> ScoreBatchResult:
        try:
            response = await prepared()
        except ModelChangedError as error:
            names = sorted(error.expected.keys() | error.found.keys())
            changes = "; ".join(
                f"its {name} was {error.expected.get(name)} and is {error.found.get(name)}"
                for name in names
                if error.expected.get(name) != error.found.get(name)
            )
            raise ServiceError(
                f"the model at {format_names(self._addresses.values(), 2)} changed while the job "
                f"ran ({changes}), and rewards of two models cannot be compared; load the former "
                "model and run the same command again to resume, or start over with --overwrite"
            ) from error
        return ScoreBatchResult(
            response.results, response.num_computed_tokens, response.num_cached_tokens
        )

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _query_identity(self, url: str, retry_s: float) -> dict[str, Any]:
        """Wait until a service has loaded the model; return what decides its rewards."""
        deadline = time.monotonic() + retry_s
        address = self._addresses[url]
        with ScoringClient(url, None, **(self._options | {"retry_timeout_s": retry_s})) as client:
            while True:
                info = client.get("/info")
                with _response_errors(address):
                    name, model = _choose_model(info["models"], self._model, address)
                    state = model["state"]
                    if state == "ready" and model.get("encoding_sha256"):
                        fingerprint = model["fingerprint"]
                        max_length = read_count(model["max_model_len"])
                        settings = collect_reward_settings(model)
                        if self._served and self._served.reward_settings != settings:
                            settings = {}
                        self._served = ScoringModel(
                            name,
                            Fingerprint(**fingerprint),
                            max_length,
                            model["kind"],
                            model.get("step_format"),
                            settings,
                        )
                        identity = {
                            "fingerprint": fingerprint,
                            "encoding_sha256": model["encoding_sha256"],
                            "max_length": max_length,
                        }
                        if model.get("reads_images"):
                            limits = model["image_limits"]
                            identity["max_image_bytes"] = read_count(limits["max_image_bytes"])
                        is_classifier = model["kind"] == "classifier"
                        return identity | ({} if is_classifier else {"kind": model["kind"]})
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"model {name!r} at {address} is {state}; wait until the model is ready, "
                        "or check the service's log",
                        retryable=True,
                    )
                time.sleep(_ASK_AGAIN_S)


async def _score_inputs(
    client: AsyncScoringClient, inputs: Sequence[ScoringInput], truncation: Truncation
) -> ResultsWithUsage:
    """Score inputs, each on the route for its type.

    The results of solutions and pairs come without usage, so that every token counts as computed.
    """
    solutions = {i: one for i, one in enumerate(inputs) if isinstance(one, StepItem)}
    pairs = {i: one for i, one in enumerate(inputs) if isinstance(one, JudgePair)}
    scored: dict[int, Reward | ScoreError] = {}
    if solutions:
        items = [{"prompt": one.prompt, "steps": one.steps} for one in solutions.values()]
        for index, steps in zip(solutions, await client.steps(items), strict=True):
            scored[index] = steps if isinstance(steps, ScoreError) else _to_reward(steps)
    if pairs:
        items = [
            {"prompt": one.prompt, "chosen": one.first, "rejected": one.second}
            for one in pairs.values()
        ]
        verdicts = await client.judge(items, "given")
        for index, verdict in zip(pairs, verdicts, strict=True):
            scored[index] = verdict if isinstance(verdict, ScoreError) else _to_log_odds(verdict)
    num_computed = sum(one.num_tokens for one in scored.values() if isinstance(one, Reward))
    num_cached = 0
    if len(scored) < len(inputs):
        chats = await client.score_with_usage(_select_chats(inputs), truncation)
        others = [index for index in range(len(inputs)) if index not in scored]
        scored |= zip(others, chats.results, strict=True)
        num_computed += chats.num_computed_tokens
        num_cached = chats.num_cached_tokens
    results = [scored[index] for index in range(len(inputs))]
    return ResultsWithUsage(results, num_computed, num_cached)


def _to_reward(scored: StepRewards) -> Reward:
    return Reward(
        scored.reward,
        scored.num_tokens,
        warnings=scored.warnings,
        step_rewards=scored.step_rewards,
    )


def _to_log_odds(verdict: Comparison) -> Reward:
    (order,) = verdict.orders
    return Reward(
        order.log_odds,
        verdict.num_tokens,
        warnings=verdict.warnings,
        label_mass=order.label_mass,
    )


def _select_chats(inputs: Sequence[ScoringInput]) -> list[ChatJson]:
    return [one for one in inputs if isinstance(one, list | dict)]


@contextlib.contextmanager
def _response_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"{address} returned an unexpected response ({type(error).__name__}: {error}); check "
            "that it is a skyreward service"
        ) from error


def _choose_model(
    models: dict[str, dict[str, Any]], name: str | None, address: str
) -> tuple[str, dict[str, Any]]:
    if name is None and len(models) == 1:
        return next(iter(models.items()))
    if name in models:
        assert name is not None
        return name, models[name]
    problem = "no model was named" if name is None else f"not {name!r}"
    raise ServiceError(f"{address} serves {', '.join(models)}, {problem}; choose one by --model")
