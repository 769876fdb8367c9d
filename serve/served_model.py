"""One model as the gateway sees it: tokenizer, cache of rewards, queue, and whether it is ready.

From conversations to rewards: tokenize a slice, look up what was computed before, queue the rest,
tokenize the next slice meanwhile, put everything back in order. Knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ParamSpec, TypeVar

from rm_core import (
    Encoded,
    Fingerprint,
    ModelLoadError,
    NotReadyError,
    OverloadedError,
    Reward,
    RewardError,
    ScoreCache,
    ScoredBatch,
    ScoreError,
    cache_keys,
    combine,
    load_encoder,
)
from serve.backends import Backend, ReplicaBusyError, ReplicaLostError
from serve.model_settings import ModelSettings
from serve.queue.dispatch import Dispatcher
from serve.queue.observer import Nobody, Observer
from serve.queue.slices import Reading, Slice, encode, encode_slice, slices
from serve.queue.waiting import Computed
from serve.record.request import current

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_RETRY_S = 1.0
# A request whose model was replaced under way is scored again; more often than that, by a model
# that does not change.
_ATTEMPTS = 3


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


class ServedModel:
    """A model that requests can name.

    Args:
        settings: what was asked for.
        backend: where its rewards come from.
        observer: is told of its batches.

    Attributes:
        encoder: renders and tokenizes for it; used on one thread alone.
        cache: rewards computed before, by any replica; None if it is switched off.
        queue: what waits for its replicas.
        info: effective settings; None until the model is loaded and warmed up.
        failure: why it is not ready, where that is known.

    Raises:
        ModelLoadError: its tokenizer or template cannot be used.
    """

    def __init__(
        self, settings: ModelSettings, backend: Backend, observer: Observer | None = None
    ) -> None:
        self.settings = settings
        self.encoder = load_encoder(settings.model_loading())
        self.cache = ScoreCache(settings.cache_bytes) if settings.cache_bytes else None
        self.queue = Dispatcher(settings.alias, backend, observer or Nobody())
        self.info: dict[str, Any] | None = None
        self.failure: str | None = None
        self.created = int(time.time())
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{settings.alias}")

    @property
    def state(self) -> str:
        """`ready`, `restarting` if all replicas were lost, `failed` or `loading`."""
        if self.info is not None:
            return "ready" if self._backend.num_replicas else "restarting"
        return "failed" if self.failure else "loading"

    def require_ready(self) -> dict[str, Any]:
        """The effective settings. A model that lost its replicas still takes what it can queue.

        Raises:
            NotReadyError: the model is not loaded.
        """
        if self.info is None:
            why = f" ({self.failure})" if self.failure else ""
            raise NotReadyError(f"model {self.settings.alias!r} is still loading{why}; try again")
        return self.info

    def require_room(self, max_queued_tokens: int) -> None:
        """Return if less than that waits.

        Raises:
            OverloadedError: it does not.
        """
        excess = self.queue.queued_tokens - max_queued_tokens
        if excess < 0:
            return
        error = OverloadedError(
            f"{self.queue.queued_tokens} tokens wait for model {self.settings.alias!r}, and "
            f"{max_queued_tokens} may (setting `max_queued_tokens`); send the request again later"
        )
        error.retry_after_s = 1.0 + (self.queue.seconds_for(excess) or 0.0)
        raise error

    async def encode(
        self, conversations: Sequence[object], reading: Reading
    ) -> list[Encoded | ScoreError]:
        """Render and tokenize only."""
        encoded: list[Encoded | ScoreError] = []
        for some in slices(conversations):
            encoded += await self._on_thread(encode, some, reading, self.encoder)
        return encoded

    async def offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Where its tokens stand in its text; see `ChatEncoder.offsets`."""
        return await self._on_thread(self.encoder.offsets, encoded)

    async def score(
        self, conversations: Sequence[object], reading: Reading, priority: int = 0
    ) -> Scores:
        """Score conversations; result i belongs to conversation i.

        Raises:
            NotReadyError: the model is not loaded, or will not be again.
        """
        for _ in range(_ATTEMPTS):
            info = self.require_ready()
            self.queue.max_batch_tokens = info["max_batch_tokens"]
            parts, answers = await self._compute(conversations, reading, priority, info)
            fingerprints = {f for answer in answers for f in answer.fingerprints}
            if any(one.num_cached_tokens for one in parts) or not fingerprints:
                fingerprints.add(fingerprint_of(info))
            self._keep(parts, answers)
            if fingerprints == {fingerprint_of(info)}:
                return self._scores(parts, answers, fingerprint_of(info))
            # The model that answered is not the one that `info` tells of.
            self.info = await self._describe()
        raise NotReadyError(f"model {self.settings.alias!r} is being replaced; try again")

    async def watch(self) -> None:
        """Keep `info` true; runs until cancelled."""
        alias = self.settings.alias
        while True:
            try:
                if self.info is None:
                    self.info = await self._describe()
                    self.failure = None
                await self._backend.refresh()
            except ModelLoadError as error:
                self.failure = error.detail
                logger.error("model %s: %s", alias, error.detail)
                return
            except RewardError as error:
                self.info, self.failure = None, error.detail
            # Whatever it was, without a watcher the model would be loading for ever.
            except Exception as error:
                logger.exception("model %s cannot be asked", alias)
                self.failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)

    async def _compute(
        self,
        conversations: Sequence[object],
        reading: Reading,
        priority: int,
        info: dict[str, Any],
    ) -> tuple[list[Slice], list[Computed]]:
        record = current()
        how = (reading, self.encoder, self.cache, fingerprint_of(info))
        done: list[Slice] = []
        tasks: list[asyncio.Task[Computed]] = []
        with self.queue.flow(record.client, priority) as flow:
            try:
                for some in slices(conversations):
                    started = time.perf_counter()
                    one = await self._on_thread(encode_slice, some, *how)
                    record.tokenize_s += time.perf_counter() - started
                    done.append(one)
                    tasks.append(asyncio.create_task(self.queue.score(flow, one.unknown)))
                    if any(task.done() and task.exception() for task in tasks):
                        break  # the request failed: nobody needs the rest
                return done, await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    def _scores(
        self, parts: Sequence[Slice], answers: Sequence[Computed], fingerprint: Fingerprint
    ) -> Scores:
        results: list[Reward | ScoreError] = []
        for one, answer in zip(parts, answers, strict=True):
            rewards = one.rewards(answer.batch.rewards)
            results += combine(one.encoded, ScoredBatch(tuple(rewards), 0))
        scores = Scores(
            model=self.settings.alias,
            results=results,
            fingerprint=fingerprint,
            num_computed_tokens=sum(answer.batch.num_computed_tokens for answer in answers),
            num_cached_tokens=sum(one.num_cached_tokens for one in parts),
        )
        record = current()
        record.queue_s += answers[0].queue_s if answers else 0.0
        batches = {number: s for answer in answers for number, s in answer.batches.items()}
        record.forward_s += sum(batches.values())
        return scores

    async def _describe(self) -> dict[str, Any]:
        """Effective settings of a replica, which must read the token ids of this tokenizer.

        Raises:
            NotReadyError: it does not, or could not be asked.
        """
        try:
            info = await self._backend.describe()
        except (ReplicaBusyError, ReplicaLostError) as error:
            raise NotReadyError(f"{error.detail}; try again") from error
        ours = self.encoder.encoding_sha256
        if info.get("encoding_sha256", ours) != ours:
            raise NotReadyError(
                f"the replicas of model {self.settings.alias!r} have another tokenizer or template "
                "than this gateway: one of them is being replaced; try again"
            )
        return info

    def _keep(self, parts: Sequence[Slice], answers: Sequence[Computed]) -> None:
        """Put into the cache what each model computed, each under its own fingerprint."""
        if self.cache is None:
            return
        for one, answer in zip(parts, answers, strict=True):
            if len(answer.fingerprints) == 1:
                keys = cache_keys(next(iter(answer.fingerprints)), one.unknown)
                for key, reward in zip(keys, answer.batch.rewards, strict=True):
                    self.cache.put(key, reward)

    async def _on_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def fingerprint_of(info: dict[str, Any]) -> Fingerprint:
    """The part of the effective settings that makes rewards comparable."""
    names = (field.name for field in fields(Fingerprint))
    return Fingerprint(**{name: info[name] for name in names if name in info})
