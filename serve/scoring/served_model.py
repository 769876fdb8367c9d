"""One model as a gateway serves it: tokenizer, score cache, queue and state.

A request is processed in slices: tokenize a slice, look up rewards that were computed before, queue
the other sequences, tokenize the next slice meanwhile, and put all results back in order. Nothing
here depends on HTTP or Ray.
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
# A request whose model was replaced meanwhile is scored again, so many times in all.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request to a model; see the settings of the same names."""

    max_queued_tokens: int = 2_000_000
    max_request_characters: int = 268_435_456
    max_request_tokens: int = 100_000_000


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Rewards in the order of the conversations, and their cost.

    Attributes:
        model: alias of the model.
        results: a reward or an error for each conversation.
        fingerprint: fingerprint of the model that computed all rewards.
        num_computed_tokens: tokens that went through the model for this request; tokens that are
            computed for several requests at once are counted in one of them.
        num_cached_tokens: tokens of the conversations whose rewards came from the cache.
    """

    model: str
    results: list[Reward | ScoreError]
    fingerprint: Fingerprint
    num_computed_tokens: int
    num_cached_tokens: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all conversations that were scored."""
        return sum(result.num_tokens for result in self.results if isinstance(result, Reward))


class ServedModel:
    """A model that requests can name.

    Args:
        settings: requested settings of the model.
        backend: replicas of the model.
        observer: receives a report of every batch.
        shares_rewards: whether a client may get rewards that were computed for another client.
        max_unbroken_characters: see the setting; None for the encoder's default.

    Attributes:
        settings: requested settings of the model.
        encoder: renders and tokenizes conversations; used on `encoder_thread` alone.
        encoder_thread: thread of the encoder.
        cache: rewards computed before, by any replica; None if the cache is turned off.
        dispatcher: queue of the model.
        model_info: effective settings; None until the model is loaded and warmed up.
        created_at: time of creation, in Unix seconds.

    Raises:
        ModelLoadError: the tokenizer or the template cannot be used.
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
        """Reason why the model is not ready, if it is known."""
        if reason := self.encoder_thread.stall_reason():
            return f"the gateway is stuck at {reason}"
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
        """Return the effective settings. A model that lost its replicas still queues requests.

        Raises:
            NotReadyError: the model is not loaded, or its encoder is stuck.
        """
        self.encoder_thread.check_health()
        if self.model_info is None:
            reason = f" ({self.failure})" if self.failure else ""
            raise NotReadyError(
                f"model {self.settings.alias!r} is still loading{reason}; try again"
            )
        return self.model_info

    def check_capacity(self, client: str, max_queued_tokens: int) -> None:
        """Return if a client has fewer tokens queued than its share.

        Clients with queued tokens, and this one, have equal shares. So a client with nothing queued
        is always accepted, however much the other clients sent.

        Raises:
            OverloadedError: the client has reached its share.
        """
        queued = self.dispatcher.tokens_by_client.get(client, 0)
        share = self.get_token_share(client, max_queued_tokens)
        if queued < share:
            return
        num_clients = self._count_clients(client)
        # The queued tokens of this client are computed at its share of the rate.
        excess = (queued - share) * num_clients
        raise OverloadedError(
            f"{queued} of your tokens are queued for model {self.settings.alias!r} and your share "
            f"is {share}: the setting `max_queued_tokens` is {max_queued_tokens} for "
            f"{num_clients} client(s); send the request again later",
            retry_after_s=1.0 + (self.dispatcher.estimate_seconds(excess) or 0.0),
        )

    async def encode(
        self,
        conversations: Sequence[object],
        options: EncodeOptions,
        limits: RequestLimits | None = None,
    ) -> list[Encoded | ScoreError]:
        """Render and tokenize conversations without scoring them.

        Raises:
            RequestTooLargeError: there are too many characters or tokens.
            NotReadyError: the encoder is stuck.
        """
        limits = limits or RequestLimits()
        sizes = _check_sizes(conversations, limits)
        encoded: list[Encoded | ScoreError] = []
        num_tokens = 0
        shared = SharedPrefix()
        with self.encoder_thread.open_flow(current_request().client) as flow:
            for slice_, size in split_into_slices(conversations, sizes):
                work = partial(encode_conversations, slice_, options, self.encoder, shared)
                new = await self.encoder_thread.run(flow, size, work)
                num_tokens += sum(e.num_tokens for e in new if isinstance(e, Encoded))
                _check_tokens(num_tokens, limits, len(encoded) + len(new), len(conversations))
                encoded += new
        return encoded

    async def compute_offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Return the character offsets of each token; see `ChatEncoder.compute_offsets`."""
        with self.encoder_thread.open_flow(current_request().client) as flow:
            return await self.encoder_thread.run(
                flow, len(encoded.text), lambda _: self.encoder.compute_offsets(encoded)
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
            NotReadyError: the model is not loaded, or will not be loaded again.
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
                self.encoder_thread.open_flow(current_request().client, priority) as encoder_flow,
            ):
                pipeline = _RequestPipeline(self, options, limits, fingerprint, flow)
                slices = await pipeline.compute(conversations, sizes, encoder_flow)
            fingerprints = {f for scored in slices for f in scored.dispatch_result.fingerprints}
            if any(scored.num_cached_tokens for scored in slices) or not fingerprints:
                fingerprints.add(fingerprint)
            if fingerprints == {fingerprint}:
                return self._build_result(slices, fingerprint)
            # The model that computed the rewards is not the one that `model_info` describes.
            self.model_info = await self._fetch_model_info()
        raise NotReadyError(f"model {self.settings.alias!r} is being replaced; try again")

    def get_cache_scope(self, client: str) -> str:
        """Return the cache scope of a client; all clients have one scope if they share rewards."""
        return "" if self._shares_rewards else client

    async def watch(self) -> None:
        """Keep `model_info` up to date; runs until cancelled, or until the model is refused."""
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
            # Any other error: without this watcher the model would stay in state `loading` forever.
            except Exception as error:
                logger.exception("model %s: its replicas cannot be reached", alias)
                self._failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)

    def _build_result(self, slices: Sequence[ScoredSlice], fingerprint: Fingerprint) -> ScoreResult:
        dispatched = [scored.dispatch_result for scored in slices]
        result = ScoreResult(
            model=self.settings.alias,
            results=[result for scored in slices for result in scored.results],
            fingerprint=fingerprint,
            num_computed_tokens=sum(d.batch.num_computed_tokens for d in dispatched),
            num_cached_tokens=sum(scored.num_cached_tokens for scored in slices),
        )
        context = current_request()
        context.queue_duration_s += dispatched[0].queue_duration_s if dispatched else 0.0
        batches = {number: s for d in dispatched for number, s in d.batch_seconds.items()}
        context.inference_s += sum(batches.values())
        return result

    def _count_clients(self, client: str) -> int:
        """Count the clients that have queued tokens, and this one."""
        tokens_by_client = self.dispatcher.tokens_by_client
        return len(tokens_by_client) + (client not in tokens_by_client)

    def get_token_share(self, client: str, max_queued_tokens: int) -> int:
        """Return how many tokens a client may have queued: an equal share of the limit."""
        return max(1, max_queued_tokens // self._count_clients(client))

    async def _fetch_model_info(self) -> dict[str, Any]:
        """Fetch the effective settings of a replica, and check that its tokenizer is this one.

        Raises:
            NotReadyError: the replica has another tokenizer, or cannot be reached.
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
    """Processes one request slice by slice.

    Args:
        model: model of the request.
        options: how conversations are encoded.
        limits: limits of the request.
        fingerprint: fingerprint of the model that should score the request.
        flow: flow of the request in the model's queue.
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
        self, conversations: Sequence[object], sizes: Sequence[int], encoder_flow: Flow[EncoderTask]
    ) -> list[ScoredSlice]:
        """Encode and score the conversations, and return the scored slices in order.

        Raises:
            RewardError: the request failed as a whole.
        """
        context = current_request()
        tasks: list[asyncio.Task[ScoredSlice]] = []
        num_tokens = num_done = 0
        try:
            for slice_, size in split_into_slices(conversations, sizes):
                started = time.perf_counter()
                encoded_slice = await self._model.encoder_thread.run(
                    encoder_flow, size, partial(self._encode, slice_)
                )
                context.tokenize_s += time.perf_counter() - started
                num_tokens += encoded_slice.num_tokens
                num_done += len(slice_)
                _check_tokens(num_tokens, self._limits, num_done, len(conversations))
                task = asyncio.create_task(self._compute_rewards(encoded_slice))
                tasks.append(task)
                self._pending_tasks.add(task)
                task.add_done_callback(self._on_task_done)
                await self._apply_backpressure()
                if self._has_failed:
                    break  # the rest is not needed
            return await asyncio.gather(*tasks)
        finally:
            for task in self._pending_tasks:
                task.cancel()

    def _encode(
        self, conversations: Sequence[object], check_cancelled: Callable[[], None]
    ) -> EncodedSlice:
        """Encode one slice. Runs on the encoder's thread."""
        model = self._model
        encoded = encode_conversations(
            conversations, self._options, model.encoder, self._shared_start, check_cancelled
        )
        return look_up_rewards(encoded, model.cache, self._fingerprint, self._scope)

    async def _compute_rewards(self, encoded_slice: EncodedSlice) -> ScoredSlice:
        model = self._model
        result = await model.dispatcher.compute_rewards(self._flow, encoded_slice.missing_sequences)
        # Rewards are cached under the fingerprint of the model that computed them.
        if model.cache is not None and len(result.fingerprints) == 1:
            keys = cache_keys(
                next(iter(result.fingerprints)), encoded_slice.missing_sequences, self._scope
            )
            for key, reward in zip(keys, result.batch.rewards, strict=True):
                model.cache.put(key, reward)
        return ScoredSlice.from_dispatch_result(encoded_slice, result)

    async def _apply_backpressure(self) -> None:
        """Wait while enough of the request is queued: all of its tokens would fill the memory."""
        model, limit = self._model, self._limits.max_queued_tokens
        await asyncio.sleep(0)  # the new slice joins the queue
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
    """Estimate how many characters each conversation has.

    Raises:
        RequestTooLargeError: there are too many in all.
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
    """Return the fingerprint that is part of a model's effective settings."""
    names = (field.name for field in fields(Fingerprint))
    return Fingerprint(**{name: info[name] for name in names if name in info})
