"""One model as the gateway sees it: tokenizer, cache of rewards, queue, and whether it is ready.

From conversations to rewards: tokenize a slice, look up what was computed before, queue the rest,
tokenize the next slice meanwhile, put everything back in order. Knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from rm_core import (
    Encoded,
    Fingerprint,
    ModelLoadError,
    NotReadyError,
    OverloadedError,
    Reward,
    RewardError,
    ScoreCache,
    ScoreError,
    SharedPrefix,
    cache_keys,
    load_encoder,
)
from serve.config.model_settings import ModelSettings
from serve.errors import ReplicaBusyError, ReplicaLostError, RequestTooLargeError
from serve.scheduler.dispatcher import Dispatcher
from serve.scheduler.fair_queue import Flow
from serve.scheduler.pending import PendingSequence
from serve.scoring.encoder_thread import EncoderTask, EncoderThread
from serve.scoring.tokenization import (
    EncodedSlice,
    EncodeOptions,
    ScoredSlice,
    encode_conversations,
    estimate_sizes,
    look_up_rewards,
    split_into_slices,
)
from serve.telemetry.context import current_request
from serve.telemetry.events import NullObserver, Observer
from serve.worker.backends import Backend

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
# A request whose model was replaced under way is scored again; more often than that, by a model
# that does not change.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask of a model; see the settings of the same names."""

    max_queued_tokens: int = 2_000_000
    max_request_characters: int = 268_435_456
    max_request_tokens: int = 100_000_000


@dataclass(frozen=True, slots=True)
class ScoreResult:
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
        shares_rewards: whether a client may get rewards that were computed for another one.
        max_unbroken_characters: see the setting; None for the encoder's own.

    Attributes:
        encoder: renders and tokenizes for it; used on one thread alone.
        encoding: that thread.
        cache: rewards computed before, by any replica; None if it is switched off.
        queue: what waits for its replicas.
        info: effective settings; None until the model is loaded and warmed up.

    Raises:
        ModelLoadError: its tokenizer or template cannot be used.
    """

    def __init__(
        self,
        settings: ModelSettings,
        backend: Backend,
        observer: Observer | None = None,
        *,
        shares_rewards: bool = True,
        max_unbroken_characters: int | None = None,
    ) -> None:
        self.settings = settings
        self.encoder = load_encoder(settings.to_model_config())
        if max_unbroken_characters is not None:
            self.encoder.max_unbroken_characters = max_unbroken_characters
        self.encoder_thread = EncoderThread(settings.alias)
        self.cache = ScoreCache(settings.cache_bytes) if settings.cache_bytes else None
        self.dispatcher = Dispatcher(
            settings.alias, backend, observer or NullObserver(), shares_rewards
        )
        self.model_info: dict[str, Any] | None = None
        self._failure: str | None = None
        self.created_at = int(time.time())
        self._backend = backend
        self._shares_rewards = shares_rewards

    @property
    def failure(self) -> str | None:
        """Why it is not ready, where that is known."""
        if why := self.encoder_thread.stall_reason():
            return f"the gateway is stuck at {why}"
        return self._failure

    @property
    def state(self) -> str:
        """`ready`, `restarting` if all replicas were lost, `failed` or `loading`."""
        if self.encoder_thread.stall_reason():
            return "failed"
        if self.model_info is not None:
            return "ready" if self._backend.num_replicas else "restarting"
        return "failed" if self.failure else "loading"

    def require_ready(self) -> dict[str, Any]:
        """The effective settings. A model that lost its replicas still takes what it can queue.

        Raises:
            NotReadyError: the model is not loaded, or its encoder is stuck.
        """
        self.encoder_thread.check_health()
        if self.model_info is None:
            why = f" ({self.failure})" if self.failure else ""
            raise NotReadyError(f"model {self.settings.alias!r} is still loading{why}; try again")
        return self.model_info

    def check_capacity(self, client: str, max_queued_tokens: int) -> None:
        """Return if less than its share waits for a client.

        The share is an equal one among the clients that wait for anything, this one included: who
        waits for nothing is always let in, whatever the others sent.

        Raises:
            OverloadedError: it does not.
        """
        waiting = self.dispatcher.tokens_by_client.get(client, 0)
        share = self.get_token_share(client, max_queued_tokens)
        if waiting < share:
            return
        num_clients = self._count_clients(client)
        error = OverloadedError(
            f"{waiting} of your tokens wait for model {self.settings.alias!r}, and {share} may: "
            f"the setting `max_queued_tokens` is {max_queued_tokens} for {num_clients} client(s); "
            "send the request again later"
        )
        # What waits of this client is computed at its share of the rate.
        excess = (waiting - share) * num_clients
        error.retry_after_s = 1.0 + (self.dispatcher.estimate_seconds(excess) or 0.0)
        raise error

    async def encode(
        self,
        conversations: Sequence[object],
        options: EncodeOptions,
        limits: RequestLimits | None = None,
    ) -> list[Encoded | ScoreError]:
        """Render and tokenize only.

        Raises:
            RequestTooLargeError: there are too many characters or tokens.
            NotReadyError: the encoder is stuck.
        """
        limits = limits or RequestLimits()
        sizes = _check_sizes(conversations, limits)
        encoded: list[Encoded | ScoreError] = []
        num_tokens = 0
        shared = SharedPrefix()
        with self.encoder_thread.open_flow(current_request().client) as turn:
            for some, size in split_into_slices(conversations, sizes):
                work = partial(encode_conversations, some, options, self.encoder, shared)
                new = await self.encoder_thread.run(turn, size, work)
                num_tokens += sum(e.num_tokens for e in new if isinstance(e, Encoded))
                _check_tokens(num_tokens, limits, len(encoded) + len(new), len(conversations))
                encoded += new
        return encoded

    async def compute_offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Where its tokens stand in its text; see `ChatEncoder.compute_offsets`."""
        with self.encoder_thread.open_flow(current_request().client) as turn:
            return await self.encoder_thread.run(
                turn, len(encoded.text), lambda _: self.encoder.compute_offsets(encoded)
            )

    async def score(
        self,
        conversations: Sequence[object],
        options: EncodeOptions,
        priority: int = 0,
        limits: RequestLimits | None = None,
    ) -> ScoreResult:
        """Score conversations; result i belongs to conversation i.

        Raises:
            NotReadyError: the model is not loaded, or will not be again.
            RequestTooLargeError: there are too many characters or tokens.
        """
        limits = limits or RequestLimits()
        sizes = _check_sizes(conversations, limits)
        for _ in range(_ATTEMPTS):
            info = self.require_ready()
            self.dispatcher.max_batch_tokens = info["max_batch_tokens"]
            fingerprint = build_fingerprint(info)
            with (
                self.dispatcher.open_flow(current_request().client, priority) as flow,
                self.encoder_thread.open_flow(current_request().client, priority) as turn,
            ):
                request = _RequestPipeline(self, options, limits, fingerprint, flow)
                parts = await request.compute(conversations, sizes, turn)
            fingerprints = {f for part in parts for f in part.dispatch_result.fingerprints}
            if any(part.num_cached_tokens for part in parts) or not fingerprints:
                fingerprints.add(fingerprint)
            if fingerprints == {fingerprint}:
                return self._build_result(parts, fingerprint)
            # The model that answered is not the one that `info` tells of.
            self.model_info = await self._fetch_model_info()
        raise NotReadyError(f"model {self.settings.alias!r} is being replaced; try again")

    def get_cache_scope(self, client: str) -> str:
        """What keeps the rewards of clients apart in the cache, where they do not share them."""
        return "" if self._shares_rewards else client

    async def watch(self) -> None:
        """Keep `info` true; runs until cancelled."""
        alias = self.settings.alias
        while True:
            try:
                if self.model_info is None:
                    self.model_info = await self._fetch_model_info()
                    self._failure = None
                await self._backend.refresh()
            except ModelLoadError as error:
                self._failure = error.detail
                logger.error("model %s: %s", alias, error.detail)
                return
            except RewardError as error:
                self.model_info, self._failure = None, error.detail
            # Whatever it was, without a watcher the model would be loading for ever.
            except Exception as error:
                logger.exception("model %s cannot be asked", alias)
                self._failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)

    def _build_result(self, parts: Sequence[ScoredSlice], fingerprint: Fingerprint) -> ScoreResult:
        answers = [part.dispatch_result for part in parts]
        scores = ScoreResult(
            model=self.settings.alias,
            results=[result for part in parts for result in part.results],
            fingerprint=fingerprint,
            num_computed_tokens=sum(answer.batch.num_computed_tokens for answer in answers),
            num_cached_tokens=sum(part.num_cached_tokens for part in parts),
        )
        record = current_request()
        record.queue_duration_s += answers[0].queue_duration_s if answers else 0.0
        batches = {number: s for answer in answers for number, s in answer.batch_seconds.items()}
        record.inference_s += sum(batches.values())
        return scores

    def _count_clients(self, client: str) -> int:
        """Clients that wait for anything, this one included."""
        waiting = self.dispatcher.tokens_by_client
        return len(waiting) + (client not in waiting)

    def get_token_share(self, client: str, max_queued_tokens: int) -> int:
        """Tokens that may wait for a client: an equal share among those that wait for any."""
        return max(1, max_queued_tokens // self._count_clients(client))

    async def _fetch_model_info(self) -> dict[str, Any]:
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


class _RequestPipeline:
    """The work of one request, slice by slice.

    Args:
        model: that it asked for.
        reading: how its conversations are read.
        bounds: what it may ask for.
        fingerprint: of the model that should score it.
        flow: what it waits for in the model's queue.
    """

    def __init__(
        self,
        model: ServedModel,
        options: EncodeOptions,
        limits: RequestLimits,
        fingerprint: Fingerprint,
        flow: Flow[PendingSequence],
    ) -> None:
        self._model = model
        self._options = options
        self._limits = limits
        self._fingerprint = fingerprint
        self._flow = flow
        self._scope = model.get_cache_scope(flow.client)
        self._shared_start = SharedPrefix()
        self._pending_tasks: set[asyncio.Task[ScoredSlice]] = set()
        self._has_failed = False

    async def compute(
        self, conversations: Sequence[object], sizes: Sequence[int], turn: Flow[EncoderTask]
    ) -> list[ScoredSlice]:
        """What came of each slice.

        Raises:
            RewardError: the request failed as a whole.
        """
        record = current_request()
        tasks: list[asyncio.Task[ScoredSlice]] = []
        num_tokens = num_done = 0
        try:
            for some, size in split_into_slices(conversations, sizes):
                started = time.perf_counter()
                one = await self._model.encoder_thread.run(turn, size, partial(self._encode, some))
                record.tokenize_s += time.perf_counter() - started
                num_tokens += one.num_tokens
                num_done += len(some)
                _check_tokens(num_tokens, self._limits, num_done, len(conversations))
                task = asyncio.create_task(self._compute_rewards(one))
                tasks.append(task)
                self._pending_tasks.add(task)
                task.add_done_callback(self._on_task_done)
                await self._apply_backpressure()
                if self._has_failed:
                    break  # nobody needs the rest
            return await asyncio.gather(*tasks)
        finally:
            for task in self._pending_tasks:
                task.cancel()

    def _encode(self, some: Sequence[object], check_cancelled: Callable[[], None]) -> EncodedSlice:
        """On the encoder's thread."""
        model = self._model
        encoded = encode_conversations(
            some, self._options, model.encoder, self._shared_start, check_cancelled
        )
        return look_up_rewards(encoded, model.cache, self._fingerprint, self._scope)

    async def _compute_rewards(self, encoded_slice: EncodedSlice) -> ScoredSlice:
        model = self._model
        answer = await model.dispatcher.compute_rewards(self._flow, encoded_slice.missing_sequences)
        # What each model computed, under its own fingerprint.
        if model.cache is not None and len(answer.fingerprints) == 1:
            keys = cache_keys(
                next(iter(answer.fingerprints)), encoded_slice.missing_sequences, self._scope
            )
            for key, reward in zip(keys, answer.batch.rewards, strict=True):
                model.cache.put(key, reward)
        return ScoredSlice.from_dispatch_result(encoded_slice, answer)

    async def _apply_backpressure(self) -> None:
        """Tokens of a request are made when they are needed: else they would fill the memory."""
        model, limit = self._model, self._limits.max_queued_tokens
        await asyncio.sleep(0)  # the slice just made joins the queue
        while self._pending_tasks and not self._has_failed:
            if not model.dispatcher.should_wait(
                self._flow, model.get_token_share(self._flow.client, limit)
            ):
                return
            await asyncio.wait(self._pending_tasks, return_when=asyncio.FIRST_COMPLETED)

    def _on_task_done(self, task: asyncio.Task[ScoredSlice]) -> None:
        self._pending_tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._has_failed = True


def _check_sizes(conversations: Sequence[object], limits: RequestLimits) -> list[int]:
    """About how many characters each conversation has.

    Raises:
        RequestTooLargeError: there are too many.
    """
    sizes = estimate_sizes(conversations, limits.max_request_characters)
    if sizes is None:
        raise RequestTooLargeError(
            f"the request's {len(conversations):,} conversations have more than "
            f"{limits.max_request_characters:,} characters together, a prompt counted for each of "
            "its answers; split it into several requests, or raise the service's setting "
            "`max_request_characters`"
        )
    return sizes


def _check_tokens(num_tokens: int, limits: RequestLimits, num_done: int, number: int) -> None:
    if num_tokens > limits.max_request_tokens:
        raise RequestTooLargeError(
            f"the first {num_done:,} of the request's {number:,} conversations have "
            f"{num_tokens:,} tokens and the limit is {limits.max_request_tokens:,}; split it into "
            "several requests, or raise the service's setting `max_request_tokens`"
        )


def build_fingerprint(info: dict[str, Any]) -> Fingerprint:
    """The part of the effective settings that makes rewards comparable."""
    names = (field.name for field in fields(Fingerprint))
    return Fingerprint(**{name: info[name] for name in names if name in info})
