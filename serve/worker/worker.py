"""A model on its device, the one thread that may use it, its watchdog and its health checks.

A worker is the `Backend` of a gateway in the same process. `Worker.run_batch` is called from an
event loop and never blocks it. A batch is packed on a separate thread while the batch before it is
on the device. `Worker.check_health` checks the thread and the device; on Ray, Serve calls it
through `serve.deployments.replica.ScorerReplica`, and without Ray `/ready` reports its result.
Nothing here depends on HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar, overload

from rm_core import (
    BatchResult,
    DeviceFailedError,
    EncodedImage,
    ModelError,
    ModelInfo,
    Packing,
    RewardScorer,
    ScoreError,
)
from rm_core.packing import Readouts, TokenIds
from serve.errors import ReplicaBusyError, ReplicaLostError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_POLL_INTERVAL_S = 5.0
# A batch is stuck after so many times its expected duration, and after at least so many seconds.
# Compiled layers wait for the compiler whenever a row has a new length.
_STUCK_FACTOR = 20
_MIN_STUCK_S = 120.0
_MIN_STUCK_COMPILED_S = 900.0
# Pause of `run_one_by_one`: by then, what it yielded has left the process.
_DELIVERY_S = 0.005
# Errors of a conversation that the device may have caused; the probe decides.
_SUSPICIOUS_CODES = frozenset({"non_finite_reward", "scoring_failed"})


@dataclass(frozen=True, slots=True)
class SequenceBatch(Sequence[TokenIds]):
    """The sequences of a batch, as a gateway sends them to a replica. Is sent between processes."""

    sequences: tuple[TokenIds, ...]  # token ids of each sequence, none empty
    # Salt of each sequence, see `rm_core.packing.pack`; empty if no two differ.
    salts: tuple[str, ...] = ()
    # Id of the replica whose prefix cache has most of the prompts; empty if any replica will do.
    preferred_replica: str = ""
    # Readouts of each sequence, see `rm_core.packing.pack`; empty if each is read at its last
    # token.
    readouts: tuple[Readouts, ...] = ()
    images: tuple[EncodedImage, ...] = ()  # images whose token ids the sequences have, each once

    @classmethod
    def wrap(cls, sequences: Sequence[TokenIds]) -> SequenceBatch:
        """Return sequences as a batch."""
        return sequences if isinstance(sequences, cls) else cls(tuple(sequences))

    @overload
    def __getitem__(self, index: int) -> TokenIds: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenIds, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenIds | tuple[TokenIds, ...]:
        return self.sequences[index]

    def __len__(self) -> int:
        return len(self.sequences)


class RateEstimator:
    """Mean seconds a token of the batches so far, the latest ones weighing most."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._num_tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record the tokens of a batch and its seconds on a device."""
        self._num_tokens = self._decay * self._num_tokens + num_tokens
        self._seconds = self._decay * self._seconds + seconds

    def estimate_seconds(self, num_tokens: int) -> float | None:
        """Estimate how long one device takes for so many tokens; None if nothing was observed."""
        return num_tokens * self._seconds / self._num_tokens if self._num_tokens else None


class BatchWatchdog:
    """Tracks the running batch of a device.

    Args:
        is_compiled: whether the model's layers are compiled.
        stuck_after_s: seconds after which a running batch is stuck; None: 20 times the duration
            expected from the batches before it, at least 120 (900 if compiled).
    """

    def __init__(self, *, is_compiled: bool, stuck_after_s: float | None = None) -> None:
        self.stuck_after_s = stuck_after_s
        self._min_limit_s = _MIN_STUCK_COMPILED_S if is_compiled else _MIN_STUCK_S
        self._running: tuple[float, int] | None = None  # start time, number of tokens
        self._rate = RateEstimator(decay=0.9)

    def begin(self, num_tokens: int) -> None:
        """Record that a batch starts on the device; a batch before it is finished."""
        self.finish()
        self._running = (time.perf_counter(), num_tokens)

    def finish(self) -> None:
        """Record that the batch on the device is finished."""
        if self._running is not None:
            started_at, num_tokens = self._running
            self.observe(num_tokens, time.perf_counter() - started_at)
        self._running = None

    def stop(self) -> None:
        """Record that nothing is on the device, and discard the duration of an unfinished batch."""
        self._running = None

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of a batch."""
        self._rate.observe(num_tokens, seconds)

    def stall_reason(self) -> str | None:
        """Describe a batch that has run for too long; None if there is none."""
        if (running := self._running) is None:
            return None
        started_at, num_tokens = running
        seconds, limit_s = time.perf_counter() - started_at, self._compute_limit_s(num_tokens)
        if seconds <= limit_s:
            return None
        return (
            f"a batch of {num_tokens} tokens has run for {seconds:.0f} s (limit: {limit_s:.0f} s)"
        )

    def _compute_limit_s(self, num_tokens: int) -> float:
        if self.stuck_after_s is not None:
            return self.stuck_after_s
        return max(
            self._min_limit_s, _STUCK_FACTOR * (self._rate.estimate_seconds(num_tokens) or 0.0)
        )


class Worker:
    """Runs the batches of one model, one at a time, in order of arrival; see `Backend`.

    Args:
        scorer: loaded and warmed-up scorer; only the worker may use it from now on.
        stuck_after_s: seconds after which a running batch makes the worker unhealthy; None: see
            `BatchWatchdog`.

    Attributes:
        scorer: the scorer in use; None after `put_down`.
        is_asleep: whether batches are refused until the model is woken.

    Raises:
        ModelError: the model cannot score the warm-up conversation.
    """

    num_replicas = 1

    def __init__(self, scorer: RewardScorer, stuck_after_s: float | None = None) -> None:
        self.watchdog = BatchWatchdog(
            is_compiled=scorer.loaded_model.compilation.is_compiled, stuck_after_s=stuck_after_s
        )
        self.scorer: RewardScorer | None = scorer
        self.is_asleep = False
        self._info = scorer.describe()
        self._failure: str | None = None
        self._num_running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._entrance = asyncio.Lock()  # held while sequences run one by one
        self._packing_thread = ThreadPoolExecutor(1, thread_name_prefix="packing")
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._thread = self._device_thread.submit(threading.current_thread).result()
        started = time.perf_counter()
        probe = self._device_thread.submit(scorer.probe).result()
        self._expected_reward = probe.reward
        self.watchdog.observe(probe.num_tokens, time.perf_counter() - started)

    async def run_batch(
        self, sequences: Sequence[TokenIds], backlog_tokens: int = 0
    ) -> BatchResult:
        """Score a batch; a call that is cancelled before its turn never reaches the device.

        Raises:
            ReplicaBusyError: the batch was not tried; another replica can score it.
            ReplicaLostError: no result may be trusted; another replica can score the batch.
        """
        async with self._entrance:
            self._num_running += 1
            self._is_idle.clear()
        try:
            return await self._run(SequenceBatch.wrap(sequences))
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._is_idle.set()

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int = 0
    ) -> AsyncIterator[BatchResult | None]:
        """Score sequences one after another, with nothing else on the device.

        Yields:
            None before the first sequence; then each result as soon as it is there. If this process
            dies, the caller knows which sequence was on the device.

        Raises:
            ReplicaBusyError, ReplicaLostError: see `run_batch`; for the next sequence.
        """
        async with self._entrance:
            await self._is_idle.wait()
            yield None
            batch = SequenceBatch.wrap(sequences)
            for index, sequence in enumerate(batch):
                one = slice(index, index + 1)
                alone = replace(
                    batch,
                    sequences=(sequence,),
                    salts=batch.salts[one],
                    readouts=batch.readouts[one],
                )
                await asyncio.sleep(_DELIVERY_S)
                yield await self._run(alone)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Keep batches from the device: those in flight are finished, later ones wait."""
        async with self._entrance:
            await self._is_idle.wait()
            yield

    async def run_on_device(self, work: Callable[[], T]) -> T:
        """Run a function on the device's thread."""
        return await asyncio.wrap_future(_submit(self._device_thread, work))

    def put_down(self) -> None:
        """Drop the model, within `hold`."""
        self.scorer = None

    async def replace_scorer(self, scorer: RewardScorer) -> None:
        """Use another scorer from now on, within `hold`.

        Raises:
            ModelError: it cannot score the warm-up conversation; the old one stays.
        """
        probe = await self.run_on_device(scorer.probe)
        self.scorer, self._info, self._expected_reward = scorer, scorer.describe(), probe.reward

    async def _run(self, batch: SequenceBatch) -> BatchResult:
        self._refuse_if_unhealthy()
        if self.is_asleep or self.scorer is None:
            raise ReplicaBusyError("the model is asleep; another replica, or this one later")
        packing = await asyncio.wrap_future(
            _submit(
                self._packing_thread,
                self.scorer.pack,
                batch.sequences,
                batch.salts,
                batch.readouts,
                batch.images,
            )
        )
        running = _submit(self._device_thread, self._run_packing, packing)
        future = asyncio.wrap_future(running)
        try:
            while not (await asyncio.wait([future], timeout=_POLL_INTERVAL_S))[0]:
                # A caller must not wait for a stuck thread.
                if running.running():
                    self.check_health()
                else:
                    self._refuse_if_unhealthy()
            return future.result()
        finally:
            future.cancel()

    @property
    def info(self) -> ModelInfo:
        """Effective settings of the loaded model."""
        return self._info

    async def describe(self) -> ModelInfo:
        """Return `info`."""
        self.check_health()
        return self.info

    async def refresh(self) -> None:
        """See `check_health`."""
        self.check_health()

    def check_health(self) -> None:
        """Return if the worker is healthy.

        Raises:
            ReplicaLostError: the thread is dead or stuck, the device failed, or the model computes
                other rewards than when it was loaded.
        """
        if reason := self._find_failure():
            # Another id each time: a batch that is stuck on this device again is lost again.
            raise ReplicaLostError(reason, replica=uuid.uuid4().hex, reason="replica_unhealthy")

    def close(self) -> None:
        """Stop accepting work; the running batch completes."""
        self._packing_thread.shutdown(wait=False)
        self._device_thread.shutdown(wait=False, cancel_futures=True)

    def _run_packing(self, packing: Packing) -> BatchResult:
        """Score a packed batch. Runs on the device's thread."""
        self._refuse_if_unhealthy()
        self.watchdog.begin(packing.num_tokens)
        try:
            assert self.scorer is not None, "it is replaced only while nothing runs"
            result = self.scorer.score_packing(packing)
            if any(
                isinstance(r, ScoreError) and r.code in _SUSPICIOUS_CODES for r in result.outputs
            ):
                self._probe()
            self.watchdog.finish()
        except DeviceFailedError as error:
            self.mark_unhealthy(error.detail)
        finally:
            self.watchdog.stop()
        self.check_health()
        return result

    def _refuse_if_unhealthy(self) -> None:
        if reason := self._find_failure():
            raise ReplicaBusyError(reason)

    def _probe(self) -> None:
        """Find out whether an error is the device's fault: score the warm-up conversation again."""
        try:
            assert self.scorer is not None
            reward = self.scorer.probe().reward
        except DeviceFailedError:
            raise
        except ModelError as error:
            self.mark_unhealthy(error.detail)
            return
        # Same input, same process: the reward must match almost exactly.
        if abs(reward - self._expected_reward) > 0.01 * max(1.0, abs(self._expected_reward)):
            self.mark_unhealthy(
                f"the reward of the warm-up conversation is {reward:.6g} now and was "
                f"{self._expected_reward:.6g} when the model was loaded"
            )

    def mark_unhealthy(self, reason: str) -> None:
        """Refuse batches from now on; `check_health` fails, so that Serve replaces the replica."""
        logger.error("unhealthy: %s", reason)
        self._failure = reason

    def _find_failure(self) -> str | None:
        thread_failure = None if self._thread.is_alive() else "its thread ended"
        reason = self._failure or thread_failure or self.watchdog.stall_reason()
        return reason and f"the replica cannot score any more: {reason}"


def _submit(
    thread: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Future[T]:
    try:
        return thread.submit(work, *args, **kwargs)
    except RuntimeError:  # closed
        raise ReplicaBusyError("the replica was stopped; another one can score this") from None
