"""A model on its device, the one thread that may use it, and their health checks.

`Worker.run_batch` is called from an event loop and never blocks it. A batch is packed on a separate
thread while the batch before it is on the device. `Worker.check_health` checks the thread and the
device; on Ray, Serve calls it through `serve.deployments.replica.ScorerReplica`, and without Ray
`/ready` reports its result. Nothing here depends on HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from rm_core import DeviceFailedError, ModelError, Packing, RewardScorer, ScoredBatch, ScoreError
from rm_core.packing import TokenIds
from serve.errors import ReplicaRejectedBatchError, ReplicaUnhealthyError
from serve.worker.watchdog import BatchWatchdog

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_POLL_INTERVAL_S = 5.0
# Pause of `run_one_by_one` after each result, and the longest wait for a result to be taken.
_DELIVERY_S = 0.005
_MAX_DELIVERY_S = 1.0
# Errors of a conversation that the device may have caused; the probe decides.
_SUSPICIOUS_CODES = frozenset({"non_finite_reward", "scoring_failed"})


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """Result of one batch, as plain data that is sent between processes.

    Attributes:
        batch: rewards; reward i belongs to sequence i.
        inference_s: seconds on the device, without the wait for it.
        fingerprint: fields of the `rm_core.Fingerprint` of the model that scored the batch.
    """

    batch: ScoredBatch
    inference_s: float
    fingerprint: dict[str, str]


class Worker:
    """Runs the batches of one model, one at a time, in order of arrival.

    Args:
        scorer: loaded and warmed-up scorer; only the worker may use it from now on.
        stuck_after_s: seconds after which a running batch makes the worker unhealthy; None: see
            `BatchWatchdog`.

    Attributes:
        watchdog: watchdog of the batches.

    Raises:
        ModelError: the model cannot score the warm-up conversation.
    """

    def __init__(self, scorer: RewardScorer, stuck_after_s: float | None = None) -> None:
        self.watchdog = BatchWatchdog(
            is_compiled=scorer.loaded_model.compiled, stuck_after_s=stuck_after_s
        )
        self._scorer = scorer
        self._fingerprint: dict[str, str] = scorer.fingerprint.as_dict()
        self._failure: str | None = None
        self._packing_thread = ThreadPoolExecutor(1, thread_name_prefix="packing")
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._thread = self._device_thread.submit(threading.current_thread).result()
        started = time.perf_counter()
        probe = self._device_thread.submit(scorer.probe).result()
        self._expected_reward = probe.reward
        self.watchdog.observe(probe.num_tokens, time.perf_counter() - started)

    async def run_batch(self, sequences: Sequence[TokenIds]) -> WorkerResult:
        """Score a batch; a call that is cancelled before its turn never reaches the device.

        Args:
            sequences: token ids, none empty, at most about a batch of them.

        Raises:
            ReplicaRejectedBatchError: the batch was not tried; another replica can score it.
            ReplicaUnhealthyError: no result may be trusted; another replica can score the batch.
        """
        self._refuse_if_unhealthy()
        packing = await asyncio.wrap_future(
            _submit(self._packing_thread, self._scorer.pack, sequences)
        )
        return await self._await_with_watchdog(
            _submit(self._device_thread, self._run_packing, packing)
        )

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds]
    ) -> AsyncIterator[WorkerResult | None]:
        """Score sequences one after another without other work in between, each as its own batch.

        Args:
            sequences: token ids, none empty.

        Yields:
            None once the device begins with the first sequence; then each result as soon as it is
            there. If this process dies, the caller knows which sequence was on the device.

        Raises:
            ReplicaRejectedBatchError: no further sequence was tried; another replica can score the
                rest.
            ReplicaUnhealthyError: the current result may not be trusted; another replica can score
                the sequence.
        """
        self._refuse_if_unhealthy()
        # All are submitted at once, so that later batches queue behind them. The device waits until
        # a result is on its way before it begins with the next sequence, which may end the process.
        begun = _submit(self._device_thread, threading.current_thread)
        futures, sent_events = [], [threading.Event() for _ in sequences]
        for sequence, is_sent in zip(sequences, sent_events, strict=True):
            futures.append(_submit(self._device_thread, self._run_single, sequence))
            _submit(self._device_thread, is_sent.wait, _MAX_DELIVERY_S)
        try:
            await self._await_with_watchdog(begun)
            yield None
            for future, is_sent in zip(futures, sent_events, strict=True):
                result: WorkerResult = await self._await_with_watchdog(future)
                yield result
                await asyncio.sleep(_DELIVERY_S)
                is_sent.set()
        finally:
            for future, is_sent in zip(futures, sent_events, strict=True):
                future.cancel()
                is_sent.set()

    def _run_single(self, sequence: TokenIds) -> WorkerResult:
        """Score one sequence. Runs on the device's thread."""
        return self._run_packing(self._scorer.pack([sequence]))

    def describe(self) -> dict[str, Any]:
        """Return the effective settings of the loaded model.

        Raises:
            ReplicaUnhealthyError: see `check_health`.
        """
        self.check_health()
        return self._scorer.describe()

    def check_health(self) -> None:
        """Return if the worker is healthy.

        Raises:
            ReplicaUnhealthyError: the thread is dead or stuck, the device failed, or the model
                computes other rewards than when it was loaded.
        """
        if reason := self._failure or self._find_thread_failure() or self.watchdog.stall_reason():
            raise ReplicaUnhealthyError(f"the replica cannot score any more: {reason}")

    def close(self) -> None:
        """Stop accepting work; the running batch completes."""
        self._packing_thread.shutdown(wait=False)
        self._device_thread.shutdown(wait=False, cancel_futures=True)

    async def _await_with_watchdog(self, pending: Future[T]) -> T:
        future = asyncio.wrap_future(pending)
        try:
            while not (await asyncio.wait([future], timeout=_POLL_INTERVAL_S))[0]:
                # A caller must not wait for a stuck thread.
                if pending.running():
                    self.check_health()
                else:
                    self._refuse_if_unhealthy()
            return future.result()
        finally:
            future.cancel()

    def _run_packing(self, packing: Packing) -> WorkerResult:
        """Score a packed batch. Runs on the device's thread."""
        self._refuse_if_unhealthy()
        started = time.perf_counter()
        self.watchdog.begin(packing.num_tokens)
        try:
            batch = self._scorer.score_packing(packing)
            inference_s = time.perf_counter() - started
            if any(
                isinstance(r, ScoreError) and r.code in _SUSPICIOUS_CODES for r in batch.rewards
            ):
                self._probe()
            self.watchdog.finish()
        except DeviceFailedError as error:
            self._mark_unhealthy(error.detail)
        finally:
            self.watchdog.stop()
        self.check_health()
        return WorkerResult(batch, inference_s, self._fingerprint)

    def _refuse_if_unhealthy(self) -> None:
        try:
            self.check_health()
        except ReplicaUnhealthyError as error:
            raise ReplicaRejectedBatchError(error.detail) from error

    def _probe(self) -> None:
        """Find out whether an error is the device's fault: score the warm-up conversation again."""
        try:
            reward = self._scorer.probe().reward
        except DeviceFailedError:
            raise
        except ModelError as error:
            self._mark_unhealthy(error.detail)
            return
        # Same input, same process: the reward must match almost exactly.
        if abs(reward - self._expected_reward) > 0.01 * max(1.0, abs(self._expected_reward)):
            self._mark_unhealthy(
                f"the reward of the warm-up conversation is {reward:.6g} now and was "
                f"{self._expected_reward:.6g} when the model was loaded"
            )

    def _mark_unhealthy(self, reason: str) -> None:
        logger.error("unhealthy: %s", reason)
        self._failure = reason

    def _find_thread_failure(self) -> str | None:
        return None if self._thread.is_alive() else "its thread ended"


def _submit(
    thread: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Future[T]:
    try:
        return thread.submit(work, *args, **kwargs)
    except RuntimeError:  # closed
        raise ReplicaUnhealthyError("the replica was stopped; another one can score this") from None
