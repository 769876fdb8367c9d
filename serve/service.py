"""The one path from conversations to rewards that every wire format goes through.

Tokenizes, splits into batches, sends them to the model's backend and puts everything back in
order. Knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rm_core import (
    ChatEncoder,
    Encoded,
    ModelLoadError,
    NotReadyError,
    OverloadedError,
    Reward,
    RewardError,
    ScoredBatch,
    ScoreError,
    Truncation,
    combine,
    load_encoder,
    pack,
)
from serve.backends import Backend
from serve.problems import BadRequestError, UnknownModelError
from serve.settings import ModelSettings

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


@dataclass(slots=True)
class ServedModel:
    """One model as the gateway sees it.

    Attributes:
        settings: what was asked for.
        encoder: renders and tokenizes for it; used on `thread` alone.
        backend: where its rewards come from.
        info: effective settings; None until the model is loaded and warmed up.
        failure: why it is not ready, where that is known.
    """

    settings: ModelSettings
    encoder: ChatEncoder
    backend: Backend
    thread: ThreadPoolExecutor
    info: dict[str, Any] | None = None
    failure: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def state(self) -> str:
        """`ready`, `failed` or `loading`."""
        if self.info is not None:
            return "ready"
        return "failed" if self.failure else "loading"


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards in the order of the conversations, and what they cost.

    Attributes:
        model: alias of the model.
        results: a reward or an error each.
        fingerprint: of the model, see `rm_core.Fingerprint`.
        num_computed_tokens: tokens that went through the model.
    """

    model: str
    results: list[Reward | ScoreError]
    fingerprint: dict[str, str]
    num_computed_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all conversations that were scored."""
        return sum(result.num_tokens for result in self.results if isinstance(result, Reward))


class ScoringService:
    """Several models by name.

    Args:
        models: settings and backend of each.

    Raises:
        ModelLoadError: a tokenizer or template cannot be used.
    """

    def __init__(self, models: Sequence[tuple[ModelSettings, Backend]]) -> None:
        self._models = {
            settings.alias: ServedModel(
                settings=settings,
                encoder=load_encoder(settings.model_loading()),
                backend=backend,
                thread=ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{settings.alias}"),
            )
            for settings, backend in models
        }
        self._num_running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """Models by alias."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and warmed up, and new work is accepted."""
        return not self._draining and all(m.info is not None for m in self._models.values())

    async def drain(self) -> None:
        """Accept nothing new, and return once everything accepted is answered."""
        self._draining = True
        await self._idle.wait()

    async def watch(self) -> None:
        """Keep `ServedModel.info` true of every model; runs until cancelled."""
        await asyncio.gather(*(self._watch(model) for model in self._models.values()))

    def find(self, name: str | None) -> ServedModel:
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

    async def encode(
        self, name: str | None, conversations: Sequence[object], truncation: Truncation
    ) -> tuple[ServedModel, list[Encoded | ScoreError]]:
        """Render and tokenize only.

        Raises:
            UnknownModelError, BadRequestError: see `find`.
        """
        model = self.find(name)
        encoded = await asyncio.get_running_loop().run_in_executor(
            model.thread, model.encoder.encode_all, conversations, truncation
        )
        return model, encoded

    async def score(
        self, name: str | None, conversations: Sequence[object], truncation: Truncation
    ) -> Scores:
        """Score conversations; result i belongs to conversation i.

        Raises:
            UnknownModelError, BadRequestError: see `find`.
            NotReadyError: the model is not loaded, or was lost on the way.
            OverloadedError: the service is stopping.
        """
        self._require_ready(self.find(name))
        if self._draining:
            raise OverloadedError("the service is stopping; send the request again, or elsewhere")
        self._num_running += 1
        self._idle.clear()
        try:
            return await self._score(name, conversations, truncation)
        finally:
            self._num_running -= 1
            if self._num_running == 0:
                self._idle.set()

    async def _score(
        self, name: str | None, conversations: Sequence[object], truncation: Truncation
    ) -> Scores:
        started = time.perf_counter()
        model, encoded = await self.encode(name, conversations, truncation)
        tokenized = time.perf_counter()
        info = self._require_ready(model)
        scored = await self._score_ids(
            model, [e.input_ids for e in encoded if isinstance(e, Encoded)]
        )
        scores = Scores(
            model=model.settings.alias,
            results=combine(encoded, scored),
            fingerprint={
                key: info[key] for key in ("revision", "template_sha256", "dtype", "attention")
            },
            num_computed_tokens=scored.num_computed_tokens,
        )
        logger.info(
            "scored model=%s items=%d errors=%d tokens=%d computed=%d tokenize_s=%.3f score_s=%.3f",
            scores.model,
            len(encoded),
            sum(isinstance(r, ScoreError) for r in scores.results),
            scores.num_tokens,
            scores.num_computed_tokens,
            tokenized - started,
            time.perf_counter() - tokenized,
        )
        return scores

    async def _score_ids(
        self, model: ServedModel, sequences: Sequence[tuple[int, ...]]
    ) -> ScoredBatch:
        packing = pack(sequences, model.settings.max_batch_tokens)
        try:
            batches = await asyncio.gather(
                *(model.backend.score(batch) for batch in packing.batches)
            )
        except NotReadyError:
            model.info = None  # the watcher asks again
            raise
        for sent, got in zip(packing.batches, batches, strict=True):
            assert len(sent) == len(got.rewards)
        rewards = packing.restore([reward for batch in batches for reward in batch.rewards])
        return ScoredBatch(tuple(rewards), sum(batch.num_computed_tokens for batch in batches))

    def _require_ready(self, model: ServedModel) -> dict[str, Any]:
        if model.info is None:
            why = f" ({model.failure})" if model.failure else ""
            raise NotReadyError(f"model {model.settings.alias!r} is still loading{why}; try again")
        return model.info

    async def _watch(self, model: ServedModel) -> None:
        while True:
            if model.info is None:
                try:
                    model.info = await model.backend.describe()
                    model.failure = None
                except ModelLoadError as error:
                    model.failure = error.detail
                    logger.error("model %s: %s", model.settings.alias, error.detail)
                    return
                except RewardError as error:
                    model.failure = error.detail
                # Whatever it was, without a watcher the model would be loading for ever.
                except Exception as error:
                    logger.exception("model %s cannot be asked", model.settings.alias)
                    model.failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)
