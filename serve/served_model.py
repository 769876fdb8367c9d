"""One model as the gateway sees it: tokenizer, cache of rewards, backend, and whether it is ready.

From conversations to rewards: tokenize, look up what was computed before, send the rest to the
backend in pieces, put everything back in order. Knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rm_core import (
    Encoded,
    Fingerprint,
    ModelLoadError,
    NotReadyError,
    Reward,
    RewardError,
    ScoreCache,
    ScoredBatch,
    ScoreError,
    Truncation,
    cache_keys,
    combine,
    load_encoder,
)
from serve.backends import Backend
from serve.model_settings import ModelSettings
from serve.pieces import Pieces, split
from serve.request_record import current

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards in the order of the conversations, and what they cost.

    Attributes:
        model: alias of the model.
        results: a reward or an error each.
        fingerprint: what makes them comparable.
        num_computed_tokens: tokens that went through the model for them; what is computed for
            several requests at once is counted in one of them.
        num_cached_tokens: tokens of the conversations that were answered from the cache.
    """

    model: str
    results: list[Reward | ScoreError]
    fingerprint: Fingerprint
    num_computed_tokens: int
    num_cached_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all conversations that were scored."""
        return sum(result.num_tokens for result in self.results if isinstance(result, Reward))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A tokenized request: what is known of it, and what has to be computed.

    Attributes:
        encoded: `[num_conversations]`.
        fingerprint: of the model that it was planned for.
        keys: in the cache, of each sequence that could be encoded; none if there is no cache.
        known: the reward of each sequence that could be encoded; None where it is to be computed.
        pieces: of those to be computed.
        num_cached_tokens: of those known.
    """

    encoded: list[Encoded | ScoreError]
    fingerprint: Fingerprint
    keys: list[bytes]
    known: list[float | None]
    pieces: Pieces
    num_cached_tokens: int


class ServedModel:
    """A model that requests can name.

    Args:
        settings: what was asked for.
        backend: where its rewards come from.

    Attributes:
        encoder: renders and tokenizes for it; used on one thread alone.
        cache: rewards computed before, by any replica; None if it is switched off.
        info: effective settings; None until the model is loaded and warmed up.
        failure: why it is not ready, where that is known.

    Raises:
        ModelLoadError: its tokenizer or template cannot be used.
    """

    def __init__(self, settings: ModelSettings, backend: Backend) -> None:
        self.settings = settings
        self.encoder = load_encoder(settings.model_loading())
        self.cache = ScoreCache(settings.cache_bytes) if settings.cache_bytes else None
        self.info: dict[str, Any] | None = None
        self.failure: str | None = None
        self.created = int(time.time())
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{settings.alias}")

    @property
    def state(self) -> str:
        """`ready`, `failed` or `loading`."""
        if self.info is not None:
            return "ready"
        return "failed" if self.failure else "loading"

    def require_ready(self) -> dict[str, Any]:
        """The effective settings.

        Raises:
            NotReadyError: the model is not loaded.
        """
        if self.info is None:
            why = f" ({self.failure})" if self.failure else ""
            raise NotReadyError(f"model {self.settings.alias!r} is still loading{why}; try again")
        return self.info

    async def encode(
        self, conversations: Sequence[object], truncation: Truncation
    ) -> list[Encoded | ScoreError]:
        """Render and tokenize only."""
        return await self._on_thread(lambda: self.encoder.encode_all(conversations, truncation))

    async def score(self, conversations: Sequence[object], truncation: Truncation) -> Scores:
        """Score conversations; result i belongs to conversation i.

        Raises:
            NotReadyError: the model is not loaded, or was lost on the way.
        """
        started = time.perf_counter()
        info = self.require_ready()
        plan = await self._on_thread(lambda: self._plan(conversations, truncation, info))
        planned = time.perf_counter()
        current().tokenize_s = planned - started
        if fingerprint_of(self.require_ready()) != plan.fingerprint:
            raise NotReadyError(f"model {self.settings.alias!r} was just replaced; try again")
        computed = await self._compute(plan.pieces)
        current().forward_s = time.perf_counter() - planned
        fresh = iter(computed.rewards)
        rewards = tuple(next(fresh) if reward is None else reward for reward in plan.known)
        self._remember(plan, rewards)
        return Scores(
            model=self.settings.alias,
            results=combine(plan.encoded, ScoredBatch(rewards, computed.num_computed_tokens)),
            fingerprint=plan.fingerprint,
            num_computed_tokens=computed.num_computed_tokens,
            num_cached_tokens=plan.num_cached_tokens,
        )

    async def watch(self) -> None:
        """Keep `info` true; runs until cancelled."""
        alias = self.settings.alias
        while True:
            if self.info is None:
                try:
                    self.info = await self._backend.describe()
                    self.failure = None
                except ModelLoadError as error:
                    self.failure = error.detail
                    logger.error("model %s: %s", alias, error.detail)
                    return
                except RewardError as error:
                    self.failure = error.detail
                # Whatever it was, without a watcher the model would be loading for ever.
                except Exception as error:
                    logger.exception("model %s cannot be asked", alias)
                    self.failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _plan(
        self, conversations: Sequence[object], truncation: Truncation, info: dict[str, Any]
    ) -> _Plan:
        encoded = self.encoder.encode_all(conversations, truncation)
        sequences = [item.input_ids for item in encoded if isinstance(item, Encoded)]
        fingerprint = fingerprint_of(info)
        keys: list[bytes] = []
        known: list[float | None] = [None] * len(sequences)
        if self.cache is not None:
            keys = cache_keys(fingerprint, sequences)
            known = [self.cache.get(key) for key in keys]
        unknown = [s for s, reward in zip(sequences, known, strict=True) if reward is None]
        return _Plan(
            encoded=encoded,
            fingerprint=fingerprint,
            keys=keys,
            known=known,
            pieces=split(unknown, info["max_batch_tokens"], self.settings.num_replicas),
            num_cached_tokens=sum(map(len, sequences)) - sum(map(len, unknown)),
        )

    async def _compute(self, pieces: Pieces) -> ScoredBatch:
        """Rewards in the order of the sequences before they were split."""
        calls = [asyncio.ensure_future(self._backend.score(some)) for some in pieces.sequences]
        try:
            answers = await asyncio.gather(*calls)
        except NotReadyError:
            self.info = None  # the watcher asks again
            raise
        finally:
            for call in calls:  # after a failure nobody waits for the others
                call.cancel()
        rewards = pieces.restore([answer.rewards for answer in answers])
        return ScoredBatch(tuple(rewards), sum(answer.num_computed_tokens for answer in answers))

    def _remember(self, plan: _Plan, rewards: Sequence[float | ScoreError]) -> None:
        # If the model was lost meanwhile, another may have come up and answered.
        if self.cache is None or self.info is None or fingerprint_of(self.info) != plan.fingerprint:
            return
        for key, reward in zip(plan.keys, rewards, strict=True):
            self.cache.put(key, reward)


def fingerprint_of(info: dict[str, Any]) -> Fingerprint:
    """The part of the effective settings that makes rewards comparable."""
    return Fingerprint(**{field.name: info[field.name] for field in fields(Fingerprint)})
