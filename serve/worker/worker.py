"""A model on its device, the one thread that may use it, and whether both are in order.

`Worker.run_batch` takes batches from an event loop and never holds it up: a batch is packed on a thread
of its own while the one before it is on the device. `Worker.check_health` tells the truth about the
device; Serve asks it through `serve.deployments.replica.ScorerReplica`, `/ready` without Ray. No HTTP and
no Ray here.
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
# From an answer of `run_each` to the next conversation; and if nobody takes the answer.
_DELIVERY_S = 0.005
_MAX_DELIVERY_S = 1.0
# Errors of a conversation that may as well be the device's fault: the probe finds out.
_SUSPICIOUS_CODES = frozenset({"non_finite_reward", "scoring_failed"})


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """One batch, scored. Plain data: it travels between processes.

    Attributes:
        batch: reward i belongs to sequence i.
        inference_s: seconds on the device, waiting for it not included.
        fingerprint: of the model that scored it, by the names of `rm_core.Fingerprint`.
    """

    batch: ScoredBatch
    inference_s: float
    fingerprint: dict[str, str]


class Worker:
    """Runs the batches of one model, one at a time, in the order in which they come.

    Args:
        scorer: loaded and warmed up; used by nobody else from now on.
        stuck_after_s: seconds after which a batch that still runs makes the engine unhealthy; None:
            see `BatchWatchdog`.

    Attributes:
        clock: of its batches.

    Raises:
        ModelError: it cannot score the warm-up conversation.
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
        probed = self._device_thread.submit(scorer.probe).result()
        self._expected_reward = probed.reward
        self.watchdog.observe(probed.num_tokens, time.perf_counter() - started)

    async def run_batch(self, sequences: Sequence[TokenIds]) -> WorkerResult:
        """Score token ids; one that is cancelled before its turn never reaches the device.

        Args:
            sequences: token ids, none empty, at most about a batch of them.

        Raises:
            ReplicaRefusedError: nothing of it was tried; it can be scored elsewhere.
            ReplicaUnhealthyError: nothing of it may be trusted; it can be scored elsewhere.
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
        """Score token ids one after another with nothing in between, each as a batch of its own.

        Args:
            sequences: token ids, none empty.

        Yields:
            None once the device begins with the first; then each answer as soon as it is there:
            if this process goes, whoever listens knows what it was at.

        Raises:
            ReplicaRefusedError: nothing more was tried; the rest can be scored elsewhere.
            ReplicaUnhealthyError: this one may not be trusted; it can be scored elsewhere.
        """
        self._refuse_if_unhealthy()
        # All at once: what comes later stands behind them. The device waits until an answer is on
        # its way before it begins with the next, which might be the end of this process.
        began = _submit(self._device_thread, threading.current_thread)
        jobs, sent = [], [threading.Event() for _ in sequences]
        for sequence, is_sent in zip(sequences, sent, strict=True):
            jobs.append(_submit(self._device_thread, self._run_single, sequence))
            _submit(self._device_thread, is_sent.wait, _MAX_DELIVERY_S)
        try:
            await self._await_with_watchdog(began)
            yield None
            for job, is_sent in zip(jobs, sent, strict=True):
                answer: WorkerResult = await self._await_with_watchdog(job)
                yield answer
                await asyncio.sleep(_DELIVERY_S)
                is_sent.set()
        finally:
            for job, is_sent in zip(jobs, sent, strict=True):
                job.cancel()
                is_sent.set()

    def _run_single(self, sequence: TokenIds) -> WorkerResult:
        """On the device's thread."""
        return self._run_packing(self._scorer.pack([sequence]))

    def describe(self) -> dict[str, Any]:
        """Effective settings of the loaded model.

        Raises:
            ReplicaUnhealthyError: see `check`.
        """
        self.check_health()
        return self._scorer.describe()

    def check_health(self) -> None:
        """Return if the engine is in order.

        Raises:
            ReplicaUnhealthyError: its thread is dead or stuck, its device failed, or it computes
                something else than when it was loaded.
        """
        if why := self._failure or self._find_thread_failure() or self.watchdog.stall_reason():
            raise ReplicaUnhealthyError(f"the replica cannot score any more: {why}")

    def close(self) -> None:
        """Take nothing more; what runs is finished."""
        self._packing_thread.shutdown(wait=False)
        self._device_thread.shutdown(wait=False, cancel_futures=True)

    async def _await_with_watchdog(self, pending: Future[T]) -> T:
        future = asyncio.wrap_future(pending)
        try:
            while not (await asyncio.wait([future], timeout=_POLL_INTERVAL_S))[0]:
                # Whoever waits for a stuck thread must not be stuck with it.
                if pending.running():
                    self.check_health()
                else:
                    self._refuse_if_unhealthy()
            return future.result()
        finally:
            future.cancel()

    def _run_packing(self, packing: Packing) -> WorkerResult:
        """On the device's thread."""
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
        """Whether a conversation failed by itself, or would have with any other engine."""
        try:
            reward = self._scorer.probe().reward
        except DeviceFailedError:
            raise
        except ModelError as error:
            self._mark_unhealthy(error.detail)
            return
        # The same row in the same process: hardly a bit may differ.
        if abs(reward - self._expected_reward) > 0.01 * max(1.0, abs(self._expected_reward)):
            self._mark_unhealthy(
                f"the warm-up conversation gets {reward:.6g} now and got {self._expected_reward:.6g} "
                "when the model was loaded"
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
