"""One model as a gateway serves it: tokenizer, score cache, queue and state.

A request is processed in slices: tokenize a slice, look up rewards that were computed before, queue
the other sequences, tokenize the next slice meanwhile, and put all results back in order. Nothing
here depends on HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from rm_core import (
    NUM_OUTPUTS,
    Aggregation,
    Encoded,
    Fingerprint,
    ModelInfo,
    ModelLoadError,
    NotReadyError,
    OverloadedError,
    Reward,
    RewardError,
    ScoreCache,
    ScoreError,
    cache_keys,
    list_readouts,
    load_encoder,
    merge_results,
)
from rm_core.calibration import Calibration, read_calibration
from rm_core.config import Kind
from rm_core.inputs.encoder import ChatEncoder
from rm_core.inputs.image_processor import ImageProcessor
from rm_core.packing import Readouts, TokenIds
from serve.config.model_settings import ModelSettings
from serve.errors import (
    ModelAsleepError,
    ReloadRefusedError,
    ReplicaBusyError,
    ReplicaLostError,
    WrongKindError,
)
from serve.scheduler.dispatcher import Dispatcher
from serve.scheduler.fair_queue import Flow
from serve.scheduler.pending import RequestFlow
from serve.scoring.image_memory import ImageHold, ImageMemory
from serve.scoring.tokenization import (
    EncoderTask,
    EncoderThread,
    RequestOptions,
    RequestTokenizer,
    count_image_bytes,
    drop_pixels,
)
from serve.telemetry.metrics import Metrics, ReloadOutcome
from serve.telemetry.model_states import ModelState
from serve.worker.backends import Backend, build_stage_command
from serve.worker.commands import ModelCommand

logger = logging.getLogger(__name__)

T = TypeVar("T")

KIND_NAMES: dict[Kind, str] = {
    "classifier": "a classifier",
    "step": "a step model",
    "judge": "a judge",
}
_ROUTES_OF_KIND: dict[Kind, str] = {
    "classifier": "use /v1/score, /v1/compare or /v1/rank",
    "step": "use /v1/steps, /v1/score, /v1/compare or /v1/rank",
    "judge": "it compares two answers: use /v1/compare or /v1/rank",
}
_RETRY_S = 1.0
# A request whose model was replaced meanwhile is scored again, so many times in all, each time
# after a longer pause: replicas switch to new weights one after another, each after its batch.
_ATTEMPTS = 10
_ATTEMPT_PAUSE_S = 0.01
# Fingerprints that are remembered as those of models with the tokenizer of this gateway.
_MAX_FINGERPRINTS = 16
_ASLEEP_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Rewards in the order of the conversations, and their cost."""

    model: str  # alias of the model
    kind: Kind  # kind of the model; of rewards read at every token, `classifier`
    results: list[Reward | ScoreError]  # a reward or an error for each conversation
    fingerprint: Fingerprint  # fingerprint of the model that computed all rewards
    # Tokens that went through the model for this request; tokens that are computed for several
    # requests at once are counted in one of them.
    num_computed_tokens: int
    num_cached_tokens: int  # tokens of the conversations whose rewards came from the cache
    tokenize_s: float  # seconds of rendering and tokenizing, with the wait for the tokenizer
    queue_duration_s: float  # seconds until the first conversation went to the model
    # Seconds of the forward passes of the batches with the request's conversations.
    inference_s: float
    # The encoded conversations, if they were asked for, without pixels.
    encoded: Sequence[Encoded | ScoreError] = ()
    # Calibration of these rewards; None if there is none for the model that computed them, or for
    # their aggregation.
    calibration: Calibration | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all conversations that were scored."""
        return sum(result.num_tokens for result in self.results if isinstance(result, Reward))


class _ScoredSlice(NamedTuple):
    """Results of a slice of a request."""

    results: list[Reward | ScoreError]  # result of each conversation
    num_cached_tokens: int  # tokens of the sequences whose outputs came from the cache
    has_cached: bool  # whether any output came from the cache
    # The encoded conversations, if they were asked for, without pixels.
    encoded: Sequence[Encoded | ScoreError]


class ServedModel:
    """A model that requests can name.

    If `shares_rewards`, a client may get rewards that were computed for another client.

    Attributes:
        settings: requested settings of the model.
        encoder: renders and tokenizes conversations; used on `encoder_thread` alone.
        encoder_thread: thread of the encoder.
        cache: rewards computed before, by any replica; None if the cache is turned off.
        dispatcher: queue of the model.
        image_memory: decoded images of its requests.
        created_at: time of creation, in Unix seconds.

    Raises:
        ModelLoadError: the tokenizer or the template cannot be used.
    """

    def __init__(
        self,
        settings: ModelSettings,
        backend: Backend,
        metrics: Metrics | None = None,
        *,
        shares_rewards: bool = True,
    ) -> None:
        self.settings = settings
        self.encoder = load_encoder(settings.to_model_config())
        self.encoder_thread = EncoderThread(settings.alias)
        self.cache = ScoreCache(settings.cache_bytes) if settings.cache_bytes else None
        self.dispatcher = Dispatcher(
            settings.alias, backend, metrics, shares_rewards, self.encoder.count_prompt_tokens
        )
        self.image_memory = ImageMemory()
        self.created_at = int(time.time())
        self._backend = backend
        self._metrics = metrics
        self._sleep_level = 0
        self._control_tasks: set[asyncio.Task[Any]] = set()
        self._control_lock = asyncio.Lock()
        self._shares_rewards = shares_rewards
        self._info: ModelInfo | None = None
        self._fingerprints: deque[Fingerprint] = deque(maxlen=_MAX_FINGERPRINTS)
        self._failure: str | None = None
        path = settings.calibration
        self._calibration = read_calibration(path) if path is not None else None

    @property
    def model_info(self) -> ModelInfo | None:
        """Effective settings; None until the model is loaded and warmed up."""
        # Replicas get token ids: the tokenizer in use is this gateway's, and may change.
        choice = self.encoder.text_tokenizer.choice
        if self._info is not None and self._info.tokenizer_reason != choice.reason:
            self._info = replace(self._info, tokenizer=choice.name, tokenizer_reason=choice.reason)
        return self._info

    def update_info(self, info: ModelInfo) -> None:
        """Set the effective settings of the replicas that are up now."""
        if self._has_changed(info):
            self.dispatcher.prompts.clear()
        self._info = info
        self._remember(info)
        self.dispatcher.max_batch_tokens = info.max_batch_tokens
        self.dispatcher.num_outputs = NUM_OUTPUTS[info.kind]
        self.dispatcher.prompts.max_tokens = info.prefix_cache_tokens

    @property
    def image_processor(self) -> ImageProcessor | None:
        """Reads the images of conversations; None if the model reads only text."""
        encoder = self.encoder
        if not isinstance(encoder, ChatEncoder) or encoder.image_tokens is None:
            return None
        return encoder.image_tokens.processor

    @property
    def _max_image_bytes(self) -> int:
        """Memory of the largest decoded image, three bytes a pixel."""
        return 0 if self.image_processor is None else 3 * self.image_processor.max_pixels

    @property
    def failure(self) -> str | None:
        """Reason why the model is not ready, if it is known."""
        if reason := self.encoder_thread.stall_reason():
            return f"the gateway is stuck at {reason}"
        return self._failure

    @property
    def state(self) -> str:
        """`ready`, `asleep`, `restarting` if all replicas were lost, `failed` or `loading`."""
        if self.encoder_thread.stall_reason():
            return "failed"
        if self.model_info is not None:
            if self._sleep_level:
                return "asleep"
            return "ready" if self._backend.num_replicas else "restarting"
        return "failed" if self.failure else "loading"

    @property
    def metrics_state(self) -> ModelState:
        """Current state for the metrics."""
        info = self.model_info
        return ModelState(
            ready=self.state == "ready",
            sleep_level=self._sleep_level,
            fingerprint={} if info is None else info.fingerprint.as_dict(),
            num_replicas=self.dispatcher.num_replicas,
            queued_tokens=self.dispatcher.queued_tokens,
            num_waiting=self.dispatcher.num_waiting,
            num_in_flight=self.dispatcher.num_in_flight,
            num_tokenizer_differences=self.encoder.text_tokenizer.num_differences,
            cache=None if self.cache is None else self.cache.stats,
        )

    @property
    def sleep_level(self) -> int:
        """Level of the model's sleep; 0 while it is awake."""
        return self._sleep_level

    @property
    def freed_bytes(self) -> int | None:
        """Memory that the last sleep gave back in each process; None if it is not known."""
        return self._backend.freed_bytes

    def require_ready(self) -> ModelInfo:
        """Return the effective settings. A model that lost its replicas still queues requests.

        Raises:
            NotReadyError: the model is not loaded, or its encoder is stuck.
            ModelAsleepError: the model sleeps, and its requests do not wait.
        """
        self.encoder_thread.check_health()
        if self._sleep_level and self.settings.when_asleep == "refuse":
            raise self._build_asleep_error()
        return self.require_info()

    def require_info(self) -> ModelInfo:
        """Return the effective settings of a model that is loaded, also while it sleeps."""
        if self.model_info is None:
            reason = f" ({self.failure})" if self.failure else ""
            raise NotReadyError(
                f"model {self.settings.alias!r} is still loading{reason}; try again"
            )
        return self.model_info

    def _build_asleep_error(self) -> ModelAsleepError:
        return ModelAsleepError(
            f"model {self.settings.alias!r} is asleep (level {self._sleep_level}), so that a "
            "trainer can use its device; send the request again once it is awake, or set "
            "`when_asleep` to `wait`",
            retry_after_s=_ASLEEP_RETRY_S,
        )

    async def sleep(self, level: int) -> None:
        """Put every replica to sleep, as `ModelCommand` says; return once the memory is free.

        Raises:
            NotReadyError: the model is not loaded.
        """
        await self._finish(self._sleep(level))

    async def _sleep(self, level: int) -> None:
        async with self._control_lock:
            self.require_info()
            self._set_sleep_level(max(level, self._sleep_level))
            await self._backend.control(ModelCommand("sleep", level))
            self.dispatcher.prompts.clear()

    async def wake(self) -> None:
        """Wake every replica; rewards are those of before, to the last bit.

        Raises:
            RewardError: a replica cannot; the model sleeps on.
        """
        await self._finish(self._wake())

    async def _wake(self) -> None:
        async with self._control_lock:
            await self._backend.control(ModelCommand("wake"))
            self._set_sleep_level(0)

    async def _finish(self, command: Coroutine[Any, Any, T]) -> T:
        """Run a command to its end, even if the client disconnects meanwhile."""
        task = asyncio.create_task(command)
        self._control_tasks.add(task)
        task.add_done_callback(self._control_tasks.discard)
        return await asyncio.shield(task)

    async def reload(self, source: str, version: str | None = None) -> ModelInfo:
        """Give every replica new weights; no request fails, and none mixes two versions.

        Args:
            source: folder, or ORG/NAME@REVISION on the hub.
            version: name of the weights in the fingerprint; None: the folder's name or the commit.

        Raises:
            ReloadRefusedError: the new weights cannot be used; the old ones serve on.
            ModelAsleepError: the model sleeps.
            NotReadyError: the model is not loaded.
        """
        outcome: ReloadOutcome = "failed"
        try:
            info = await self._finish(self._reload(source, version))
            outcome = "done"
        except ReloadRefusedError as error:
            outcome = "refused"
            logger.warning("%s: reload refused: %s", self.settings.alias, error.detail)
            raise
        finally:
            if self._metrics is not None:
                self._metrics.record_reload(self.settings.alias, outcome)
        return info

    async def _reload(self, source: str, version: str | None) -> ModelInfo:
        async with self._control_lock:
            self.require_info()
            if self._sleep_level:
                raise ModelAsleepError(
                    f"model {self.settings.alias!r} is asleep; wake it before its weights are "
                    "replaced",
                    retry_after_s=_ASLEEP_RETRY_S,
                )
            command = await asyncio.to_thread(build_stage_command, self.settings, source, version)
            try:
                self._remember(await self._backend.control(command))
            except BaseException:
                await self._backend.control(ModelCommand("discard"))
                raise
            info = await self._backend.control(ModelCommand("switch"))
            self.update_info(info)
            return info

    def _set_sleep_level(self, level: int) -> None:
        if level == self._sleep_level:
            return
        self._sleep_level = level
        if not level:
            self.dispatcher.resume()
            return
        refuses = self.settings.when_asleep == "refuse"
        self.dispatcher.pause(self._build_asleep_error() if refuses else None)

    def require_kind(self, *kinds: Kind) -> None:
        """Raise `WrongKindError` if the model is of none of the kinds that a route serves."""
        kind = self.encoder.kind
        if kind not in kinds:
            allowed = " or ".join(KIND_NAMES[allowed] for allowed in kinds)
            raise WrongKindError(
                f"model {self.settings.alias!r} is {KIND_NAMES[kind]}, and this route needs "
                f"{allowed}; {_ROUTES_OF_KIND[kind]}"
            )

    def check_capacity(self, client: str, max_queued_tokens: int) -> None:
        """Raise `OverloadedError` if a client has its share of tokens queued.

        Clients with queued tokens, and this one, have equal shares. So a client with nothing queued
        is always accepted, however much the other clients sent.
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
        self, conversations: Sequence[object], options: RequestOptions
    ) -> list[Encoded | ScoreError]:
        """Render and tokenize conversations without scoring them. Pixels of images are left out.

        Raises:
            RequestTooLargeError: there are too many characters, images or tokens.
            NotReadyError: the encoder is stuck.
        """
        encoded: list[Encoded | ScoreError] = []
        with (
            self.encoder_thread.open_flow(options.client) as flow,
            self._open_image_hold(options) as hold,
        ):
            async for slice_ in self._tokenize(flow, conversations, options, hold):
                if hold is not None:
                    hold.add(-count_image_bytes(slice_))
                encoded += map(drop_pixels, slice_)
                del slice_
        return encoded

    def _open_image_hold(
        self, options: RequestOptions
    ) -> contextlib.AbstractContextManager[ImageHold | None]:
        """Open the account of a request's decoded images; None if the model reads no images."""
        if self.image_processor is None:
            return contextlib.nullcontext()
        return self.image_memory.open_hold(options.client, options.max_queued_image_bytes)

    def _tokenize(
        self,
        flow: Flow[EncoderTask],
        conversations: Sequence[object],
        options: RequestOptions,
        hold: ImageHold | None,
    ) -> RequestTokenizer:
        return RequestTokenizer(
            self.encoder,
            self.encoder_thread,
            flow,
            conversations,
            options,
            hold,
            self._max_image_bytes,
        )

    async def compute_offsets(self, encoded: Encoded, client: str) -> list[tuple[int, int]] | None:
        """Return the character offsets of each token; see `ChatEncoder.compute_offsets`."""
        with self.encoder_thread.open_flow(client) as flow:
            return await self.encoder_thread.run(
                flow, len(encoded.text), lambda _: self.encoder.compute_offsets(encoded)
            )

    async def score(self, conversations: Sequence[object], options: RequestOptions) -> ScoreResult:
        """Score conversations; result i belongs to conversation i.

        Raises:
            NotReadyError: the model is not loaded, or will not be loaded again.
            RequestTooLargeError: there are too many characters, images or tokens.
        """
        for attempt in range(_ATTEMPTS):
            fingerprint = self.require_ready().fingerprint
            client, priority = options.client, options.priority
            with (
                self.dispatcher.open_flow(client, priority) as flow,
                self.encoder_thread.open_flow(client, priority) as encoder_flow,
                self._open_image_hold(options) as hold,
            ):
                tokenizer = self._tokenize(encoder_flow, conversations, options, hold)
                slices = await self._score_slices(tokenizer, flow, fingerprint, options, hold)
            if not flow.fingerprints <= {fingerprint}:
                # The model that computed the rewards is not the one that `model_info` describes.
                actual, *others = flow.fingerprints
                is_mixed = bool(others) or any(part.has_cached for part in slices)
                if is_mixed or actual not in self._fingerprints:
                    self.update_info(await self._fetch_info())
                if is_mixed or actual not in self._fingerprints:
                    await asyncio.sleep(_ATTEMPT_PAUSE_S * 2**attempt)
                    continue
                fingerprint = actual
            return ScoreResult(
                model=self.settings.alias,
                kind="classifier" if options.every_token else self.encoder.kind,
                results=[result for part in slices for result in part.results],
                fingerprint=fingerprint,
                num_computed_tokens=flow.num_computed_tokens,
                num_cached_tokens=sum(part.num_cached_tokens for part in slices),
                tokenize_s=tokenizer.seconds,
                queue_duration_s=flow.queue_duration_s or 0.0,
                inference_s=flow.inference_s,
                encoded=[item for part in slices for item in part.encoded],
                calibration=None
                if options.every_token
                else self._find_calibration(fingerprint, options.aggregation),
            )
        raise NotReadyError(f"model {self.settings.alias!r} is being replaced; try again")

    def _find_calibration(
        self, fingerprint: Fingerprint, aggregation: Aggregation
    ) -> Calibration | None:
        """Return the calibration of rewards with a fingerprint, if there is one."""
        calibration = self._calibration
        if calibration is None or calibration.find_difference(fingerprint) is not None:
            return None
        expected = aggregation if self.encoder.kind == "step" else None
        return calibration if calibration.aggregation == expected else None

    async def _score_slices(
        self,
        tokenizer: RequestTokenizer,
        flow: RequestFlow,
        fingerprint: Fingerprint,
        options: RequestOptions,
        hold: ImageHold | None,
    ) -> list[_ScoredSlice]:
        """Tokenize each slice while those before it are scored; return `_score_slice` of each."""
        tasks: list[asyncio.Task[_ScoredSlice]] = []

        async def score_slice(encoded: list[Encoded | ScoreError]) -> _ScoredSlice:
            scored = await self._score_slice(encoded, flow, fingerprint, options)
            if hold is not None:
                hold.add(-count_image_bytes(encoded))
            return scored

        try:
            async with asyncio.TaskGroup() as group:
                async for encoded in tokenizer:
                    tasks.append(group.create_task(score_slice(encoded)))
                    del encoded  # so that its images are freed once it is scored
                    await self._apply_backpressure(tasks, flow, options.max_queued_tokens)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _score_slice(
        self,
        encoded: Sequence[Encoded | ScoreError],
        flow: RequestFlow,
        fingerprint: Fingerprint,
        options: RequestOptions,
    ) -> _ScoredSlice:
        """Return the results of a slice that was encoded."""
        every_token = options.every_token
        # The values of every token would take the place of all rewards in the cache.
        cache = None if every_token else self.cache
        kind = self.encoder.kind
        items = [item for item in encoded if isinstance(item, Encoded)]
        sequences = [item.input_ids for item in items]
        readouts = [i.readouts for i in items] if every_token else list_readouts(items, kind)
        num_outputs = NUM_OUTPUTS[kind]
        scope = "" if self._shares_rewards else flow.client
        outputs: list[float | ScoreError | None]
        outputs = [None] * (num_outputs * sum(len(item.readouts) for item in items))
        keys: list[bytes] = []
        if cache is not None:
            keys = cache_keys(fingerprint, sequences, scope, readouts, num_outputs)
            outputs = [cache.get(key) for key in keys]
        has_cached = any(output is not None for output in outputs)
        missing = find_missing(sequences, readouts, outputs, num_outputs)
        computed = await self.dispatcher.compute_outputs(
            flow,
            [m.sequence for m in missing],
            [m.readouts for m in missing],
            {item.input_ids: tuple(p.image for p in item.images) for item in items if item.images},
        )
        # Outputs are cached under the fingerprint of the model that computed them.
        if keys and len(flow.fingerprints) == 1 and fingerprint not in flow.fingerprints:
            actual = next(iter(flow.fingerprints))
            keys = cache_keys(actual, sequences, scope, readouts, num_outputs)
        for index, output in zip((i for m in missing for i in m.outputs), computed, strict=True):
            outputs[index] = output
            if cache is not None and len(flow.fingerprints) == 1:
                cache.put(keys[index], output)
        results = merge_results(
            encoded,
            [output for output in outputs if output is not None],
            kind,
            options.aggregation,
            raw=every_token,
        )
        num_missing_tokens = sum(len(m.sequence) for m in missing)
        num_cached_tokens = sum(map(len, sequences)) - num_missing_tokens
        kept = tuple(map(drop_pixels, encoded)) if options.keep_encoded else ()
        return _ScoredSlice(results, num_cached_tokens, has_cached, kept)

    async def _apply_backpressure(
        self, tasks: Sequence[asyncio.Task[object]], flow: RequestFlow, max_queued_tokens: int
    ) -> None:
        """Wait while enough of the request is queued: all of its tokens would fill the memory."""
        await asyncio.sleep(0)  # the new slice joins the queue
        while self.dispatcher.should_wait(
            flow, self.get_token_share(flow.client, max_queued_tokens)
        ) and (running := [task for task in tasks if not task.done()]):
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def watch(self) -> None:
        """Keep `model_info` up to date; runs until cancelled, or until the model is refused."""
        alias = self.settings.alias
        while True:
            try:
                if self.model_info is None:
                    info = await self._fetch_info()
                    self._check_calibration(info)
                    self.update_info(info)
                    self._failure = None
                await self._backend.refresh()
                if not self._control_lock.locked():  # another gateway may have given a command
                    self._set_sleep_level(self._backend.sleep_level)
                    if (seen := self._backend.info) is not None and self._has_changed(seen):
                        self.update_info(await self._fetch_info())
            except ModelLoadError as error:
                self._failure = error.detail
                logger.error("model %s: %s", alias, error.detail)
                return
            except RewardError as error:
                self._info, self._failure = None, error.detail
            # Any other error: without this watcher the model would stay in state `loading` forever.
            except Exception as error:
                logger.exception("model %s: its replicas cannot be reached", alias)
                self._failure = f"{type(error).__name__}; the service's log has the details"
            await asyncio.sleep(_RETRY_S)

    def _remember(self, info: ModelInfo) -> None:
        """Accept rewards of a model, also before `model_info` describes it."""
        if info.fingerprint not in self._fingerprints:
            self._fingerprints.append(info.fingerprint)

    def _has_changed(self, info: ModelInfo) -> bool:
        return self._info is not None and self._info.fingerprint != info.fingerprint

    def _count_clients(self, client: str) -> int:
        """Count the clients that have queued tokens, and this one."""
        tokens_by_client = self.dispatcher.tokens_by_client
        return len(tokens_by_client) + (client not in tokens_by_client)

    def get_token_share(self, client: str, max_queued_tokens: int) -> int:
        """Return how many tokens a client may have queued: an equal share of the limit."""
        return max(1, max_queued_tokens // self._count_clients(client))

    def _check_calibration(self, info: ModelInfo) -> None:
        """Refuse a calibration of another model than that of the settings."""
        if self._calibration is None or info.version != self.settings.version:
            return  # after a reload, `_find_calibration` leaves out what does not fit
        if difference := self._calibration.find_difference(info.fingerprint):
            raise ModelLoadError(
                f"the calibration {self.settings.calibration} is of {difference}; write one for "
                "this model with `skyreward calibrate`, or remove the setting `calibration`"
            )
        if (self._calibration.aggregation is not None) != (info.kind == "step"):
            raise ModelLoadError(
                f"the calibration {self.settings.calibration} is of "
                f"{self._calibration.aggregation or 'no'} aggregation of steps, and the model is "
                f"{KIND_NAMES[info.kind]}; write one for this model with `skyreward calibrate`"
            )

    async def _fetch_info(self) -> ModelInfo:
        """Fetch the effective settings of a replica, and check that its tokenizer is this one."""
        try:
            info = await self._backend.describe()
        except (ReplicaBusyError, ReplicaLostError) as error:
            raise NotReadyError(f"{error.detail}; try again") from error
        if info.encoding_sha256 != self.encoder.encoding_sha256:
            raise NotReadyError(
                f"the replicas of model {self.settings.alias!r} have another tokenizer or template "
                "than this gateway: one of them is being replaced; try again"
            )
        return info


class MissingOutputs(NamedTuple):
    """A sequence with outputs that no cache has."""

    sequence: TokenIds  # token ids, up to the last readout that is missing
    readouts: Readouts  # readouts that are missing; see `rm_core.packing.pack`
    outputs: list[int]  # indices of the outputs that are missing among those of the slice


def find_missing(
    sequences: Sequence[TokenIds],
    readouts: Sequence[Readouts],
    outputs: Sequence[object | None],
    num_outputs: int,
) -> list[MissingOutputs]:
    """Return the sequences of which an output is None, with the readouts that are missing.

    There are `num_outputs` values for each readout of each sequence, in order.
    """
    missing = []
    start = 0
    for sequence, positions in zip(sequences, readouts, strict=True):
        stop = start + num_outputs * (len(positions) or 1)
        absent = [
            first
            for first in range(start, stop, num_outputs)
            if None in outputs[first : first + num_outputs]
        ]
        if absent:
            left = tuple(positions[(first - start) // num_outputs] for first in absent if positions)
            up_to_readout = sequence[: left[-1] + 1] if left else sequence
            indices = [first + output for first in absent for output in range(num_outputs)]
            missing.append(MissingOutputs(up_to_readout, left, indices))
        start = stop
    return missing
