"""The served models by name. Nothing here depends on HTTP or Ray.

Every wire format goes through `ScoringService.score`, which passes the conversations to
`serve.scoring.served_model`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rm_core import Aggregation, Encoded, OverloadedError, ScoreError, Truncation
from rm_core.config import Kind
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.errors import BadRequestError, UnknownModelError
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.tokenization import RequestOptions, check_num_conversations
from serve.telemetry.logging import RequestContext
from serve.telemetry.metrics import Metrics
from serve.worker.backends import Backend


class ScoringService:
    """Scores conversations with the models that requests name.

    Its settings may be replaced at any time.

    Raises:
        ModelLoadError: a tokenizer or template cannot be used.
    """

    def __init__(
        self,
        models: Sequence[tuple[ModelSettings, Backend]],
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self._models = {
            model.alias: ServedModel(
                model, backend, self.metrics, shares_rewards=settings.cache_scope == "service"
            )
            for model, backend in models
        }
        self.metrics.add_models(
            {alias: model.encoder.kind for alias, model in self._models.items()},
            lambda: {alias: model.metrics_state for alias, model in self._models.items()},
        )
        self._is_draining = False

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """Models by alias."""
        return self._models

    @property
    def is_ready(self) -> bool:
        """Whether every model has a replica that is warmed up, and new work is accepted."""
        return not self._is_draining and all(
            m.state in ("ready", "asleep") for m in self._models.values()
        )

    def stop_accepting(self) -> None:
        """Accept no more conversations; those accepted are scored."""
        self._is_draining = True

    async def watch(self) -> None:
        """Keep `ServedModel.model_info` of every model up to date; runs until cancelled."""
        await asyncio.gather(*(model.watch() for model in self._models.values()))

    def resolve_model(self, name: str | None) -> ServedModel:
        """Return the model that a request names.

        Raises:
            UnknownModelError: the model is not served here.
            BadRequestError: the request names no model, and several are served.
        """
        served = ", ".join(self._models)
        if name is None:
            if len(self._models) > 1:
                raise BadRequestError(f"`model` is missing; several are served: {served}")
            return next(iter(self._models.values()))
        if name in self._models:
            return self._models[name]
        # The name that a model was loaded from, if it identifies one model.
        matches = [m for m in self._models.values() if m.settings.name == name]
        if len(matches) == 1:
            return matches[0]
        raise UnknownModelError(f"model {name!r} is not served here; served: {served}")

    def resolve_models(self, names: Sequence[str]) -> list[ServedModel]:
        """Return the models that a request names.

        Raises:
            UnknownModelError: some are not served here; the message names all of those.
        """
        models, unknown = [], []
        for name in names:
            try:
                models.append(self.resolve_model(name))
            except UnknownModelError:
                unknown.append(repr(name))
        if unknown:
            raise UnknownModelError(
                f"models not served here: {', '.join(unknown)}; served: {', '.join(self._models)}"
            )
        return models

    def check_health(self) -> None:
        """Raise `NotReadyError` if a model's encoder is stuck, which needs a new process."""
        for model in self._models.values():
            model.encoder_thread.check_health()

    def check_any_capacity(self, client: str) -> None:
        """Raise `OverloadedError` if no model can queue tokens for a client."""
        for model in self._models.values():
            try:
                model.check_capacity(client, self.settings.max_queued_tokens)
            except OverloadedError as error:
                last_error = error
            else:
                return
        raise last_error

    async def encode(
        self,
        name: str | None,
        conversations: Sequence[object],
        truncation: Truncation,
        context: RequestContext | None = None,
        *,
        kinds: Sequence[Kind] = ("classifier", "step"),
    ) -> tuple[ServedModel, list[Encoded | ScoreError]]:
        """Render and tokenize conversations without scoring them; the arguments are as of `score`.

        Raises:
            UnknownModelError: see `resolve_model`.
            WrongKindError: the model is of another kind.
            BadRequestError: see `resolve_model`; or there are too many conversations.
            RequestTooLargeError: there are too many characters, images or tokens in all.
            NotReadyError: the model's encoder is stuck.
        """
        context = context or RequestContext("-")
        model, options = self._prepare_request(name, conversations, context, truncation)
        model.require_kind(*kinds)
        return model, await model.encode(conversations, options)

    async def score(
        self,
        name: str | None,
        conversations: Sequence[object],
        truncation: Truncation,
        priority: int = 0,
        max_length: int | None = None,
        context: RequestContext | None = None,
        *,
        kinds: Sequence[Kind] = ("classifier", "step"),
        aggregation: Aggregation = "last",
        every_token: bool = False,
        keep_encoded: bool = False,
    ) -> ScoreResult:
        """Score conversations; result i belongs to conversation i.

        Args:
            name: name of the model; see `resolve_model`.
            conversations: conversations as they came; each may also be a `PrerenderedText` or
                `PrerenderedTokens`.
            truncation: what to do with conversations that are too long.
            priority: of the client's requests, those with a lower value go first.
            max_length: maximum number of tokens in a conversation, if less than the model's limit.
            context: record of the request, whose client is served; the model, counts and timings
                are added to it.
            kinds: kinds of models that may score the conversations.
            aggregation: how a step model's rewards of steps become the reward.
            every_token: read the model at each token, and return its outputs raw.
            keep_encoded: return the encoded conversations as well.

        Raises:
            UnknownModelError: see `resolve_model`.
            WrongKindError: the model is of another kind.
            BadRequestError: see `resolve_model`; or there are too many conversations.
            RequestTooLargeError: there are too many characters, images or tokens in all.
            NotReadyError: the model is not loaded, or will not be loaded again.
            OverloadedError: the client has too many tokens queued, or the service is stopping.
        """
        context = context or RequestContext("-")
        model, options = self._prepare_request(
            name, conversations, context, truncation, priority, max_length
        )
        model.require_kind(*kinds)
        options = replace(
            options, aggregation=aggregation, every_token=every_token, keep_encoded=keep_encoded
        )
        model.require_ready()
        model.check_capacity(context.client, self.settings.max_queued_tokens)
        if self._is_draining:
            raise OverloadedError(
                "the service is stopping; send the request again, or to another address"
            )
        result = await model.score(conversations, options)
        self._record_result(result, context)
        return result

    def _prepare_request(
        self,
        name: str | None,
        conversations: Sequence[object],
        context: RequestContext,
        truncation: Truncation,
        priority: int = 0,
        max_length: int | None = None,
    ) -> tuple[ServedModel, RequestOptions]:
        model = self.resolve_model(name)
        check_num_conversations(len(conversations), self.settings.max_conversations)
        context.model = model.settings.alias
        context.num_conversations = len(conversations)
        return model, RequestOptions(
            client=context.client,
            priority=priority,
            truncation=truncation,
            max_length=max_length,
            max_messages=self.settings.max_messages,
            max_queued_tokens=self.settings.max_queued_tokens,
            max_request_images=self.settings.max_request_images,
            max_queued_image_bytes=self.settings.max_queued_image_bytes,
        )

    def _record_result(self, result: ScoreResult, context: RequestContext) -> None:
        """Record counts and timings of a request in its context and in the metrics."""
        context.num_errors = sum(isinstance(item, ScoreError) for item in result.results)
        context.num_tokens = result.num_tokens
        context.num_computed_tokens = result.num_computed_tokens
        context.num_cached_tokens = result.num_cached_tokens
        context.tokenize_s = result.tokenize_s
        context.queue_duration_s = result.queue_duration_s
        context.inference_s = result.inference_s
        self.metrics.record_results(
            result.model,
            result.results,
            result.kind,
            num_computed_tokens=result.num_computed_tokens,
            num_cached_tokens=result.num_cached_tokens,
        )
