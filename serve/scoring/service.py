"""The served models by name, and whether new work is accepted. Knows neither HTTP nor Ray.

Every wire format goes through `ScoringService.score`; what happens to the conversations then is
the business of `serve.get_reward_client.served_model`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from rm_core import Encoded, OverloadedError, ScoreError, Truncation
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.errors import BadRequestError, UnknownModelError
from serve.scoring.limits import check_num_conversations
from serve.scoring.model_state import get_model_states
from serve.scoring.served_model import RequestLimits, ScoreResult, ServedModel
from serve.scoring.tokenization import EncodeOptions
from serve.telemetry.context import current_request
from serve.telemetry.metrics import Metrics
from serve.worker.backends import Backend


class ScoringService:
    """Several models by name.

    Args:
        models: settings and backend of each.
        settings: its limits; may be replaced at any time.
        metrics: where its work is counted; by default its own.

    Attributes:
        metrics: the same.

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
                model,
                backend,
                self.metrics,
                shares_rewards=settings.cache_scope == "service",
                max_unbroken_characters=settings.max_unbroken_characters,
            )
            for model, backend in models
        }
        self.metrics.add_models(self._models, lambda: get_model_states(self._models))
        self._num_running = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """Models by alias."""
        return self._models

    @property
    def is_ready(self) -> bool:
        """Whether every model has a replica that is warmed up, and new work is accepted."""
        return not self._is_draining and all(m.state == "ready" for m in self._models.values())

    async def drain(self) -> None:
        """Accept nothing new, and return once everything accepted is answered."""
        self._is_draining = True
        await self._idle.wait()

    async def watch(self) -> None:
        """Keep `ServedModel.model_info` true of every model; runs until cancelled."""
        await asyncio.gather(*(model.watch() for model in self._models.values()))

    def resolve_model(self, name: str | None) -> ServedModel:
        """The model that a request means.

        Raises:
            UnknownModelError: not served here.
            BadRequestError: none named, and there are several.
        """
        served = ", ".join(self._models)
        if name is None:
            if len(self._models) > 1:
                raise BadRequestError(f"`model` is missing; several are served: {served}")
            return next(iter(self._models.values()))
        if name in self._models:
            return self._models[name]
        # By what it was loaded from, where that tells one model from all others.
        loaded_from_it = [m for m in self._models.values() if m.settings.name == name]
        if len(loaded_from_it) == 1:
            return loaded_from_it[0]
        raise UnknownModelError(f"model {name!r} is not served here; served: {served}")

    def check_health(self) -> None:
        """Return if no model's encoder is stuck: only a new process helps then.

        Raises:
            NotReadyError: one is.
        """
        for model in self._models.values():
            model.encoder_thread.check_health()

    def check_any_capacity(self) -> None:
        """Return if any model can queue something for the client of this request.

        Raises:
            OverloadedError: none can.
        """
        for model in self._models.values():
            try:
                model.check_capacity(current_request().client, self.settings.max_queued_tokens)
            except OverloadedError as error:
                full = error
            else:
                return
        raise full

    async def encode(
        self, name: str | None, conversations: Sequence[object], truncation: Truncation
    ) -> tuple[ServedModel, list[Encoded | ScoreError]]:
        """Render and tokenize only.

        Raises:
            UnknownModelError: see `find`.
            BadRequestError: see `find`; or there are too many conversations.
            RequestTooLargeError: they have too many characters or tokens together.
            NotReadyError: the model's encoder is stuck.
        """
        model = self._prepare_request(name, conversations)
        reading = self._build_encode_options(truncation, None)
        return model, await model.encode(conversations, reading, self._build_limits())

    async def score(
        self,
        name: str | None,
        conversations: Sequence[object],
        truncation: Truncation,
        priority: int = 0,
        max_length: int | None = None,
    ) -> ScoreResult:
        """Score conversations; result i belongs to conversation i.

        Args:
            name: of the model; see `find`.
            conversations: as they came; or `RenderResult` or `PrerenderedTokens` in the place of any.
            truncation: what to do with those that are too long.
            priority: which of the client's requests go first: those of a lower number.
            max_length: most tokens of a conversation, where that is less than the model's limit.

        Raises:
            UnknownModelError: see `find`.
            BadRequestError: see `find`; or there are too many conversations.
            RequestTooLargeError: they have too many characters or tokens together.
            NotReadyError: the model is not loaded, or will not be again.
            OverloadedError: too much waits already for the client, or the service is stopping.
        """
        model = self._prepare_request(name, conversations)
        model.require_ready()
        model.check_capacity(current_request().client, self.settings.max_queued_tokens)
        if self._is_draining:
            raise OverloadedError("the service is stopping; send the request again, or elsewhere")
        self._num_running += 1
        self._idle.clear()
        try:
            scores = await model.score(
                conversations,
                self._build_encode_options(truncation, max_length),
                priority,
                self._build_limits(),
            )
            self._record_result(scores)
            return scores
        finally:
            self._num_running -= 1
            if self._num_running == 0:
                self._idle.set()

    def _prepare_request(self, name: str | None, conversations: Sequence[object]) -> ServedModel:
        model = self.resolve_model(name)
        check_num_conversations(len(conversations), self.settings.max_conversations)
        record = current_request()
        record.model = model.settings.alias
        record.num_conversations = len(conversations)
        return model

    def _build_encode_options(
        self, truncation: Truncation, max_length: int | None
    ) -> EncodeOptions:
        return EncodeOptions(truncation, self.settings.max_messages, max_length)

    def _build_limits(self) -> RequestLimits:
        return RequestLimits(
            self.settings.max_queued_tokens,
            self.settings.max_request_characters,
            self.settings.max_request_tokens,
        )

    def _record_result(self, scores: ScoreResult) -> None:
        record = current_request()
        record.num_errors = sum(isinstance(result, ScoreError) for result in scores.results)
        record.num_tokens = scores.num_tokens
        record.num_computed_tokens = scores.num_computed_tokens
        record.num_cached_tokens = scores.num_cached_tokens
        self.metrics.record_results(
            scores.model,
            scores.results,
            num_computed_tokens=scores.num_computed_tokens,
            num_cached_tokens=scores.num_cached_tokens,
        )
