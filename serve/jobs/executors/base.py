"""The base of executors; a job does not depend on which executor scores it.

An executor does not know rows, files or chunks: it receives well-formed, distinct inputs, usually
conversations, and returns a reward or an error for each. The job alone keeps state across restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rm_core import Fingerprint, NotReadyError, Reward, ScoreError, Truncation
from rm_core.config import Kind, StepFormat
from serve.jobs.inputs.items import ScoringInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScoreBatchResult:
    """Results of one call.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: number of tokens that went through the model; shared prefixes count
            once.
        num_cached_tokens: number of tokens of conversations whose rewards came from the cache of a
            service.
        max_batch_tokens: token budget of the batches of a local model, which a job keeps because
            it decides last bits.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int
    num_cached_tokens: int = 0
    max_batch_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """The model that scores.

    Attributes:
        name: name in requests.
        fingerprint: fingerprint of its rewards.
        max_length: maximum number of tokens.
        kind: kind of the model.
        step_format: how a step model divides a solution into steps; None for other kinds.
        reward_settings: see `collect_reward_settings`; empty for services that differ in them.
    """

    name: str
    fingerprint: Fingerprint
    max_length: int
    kind: Kind = "classifier"
    step_format: StepFormat | None = None
    reward_settings: Mapping[str, Any] = field(default_factory=dict)


def collect_reward_settings(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the bits of a reward and is not in the fingerprint, as JSON data.

    Args:
        info: fields of `ModelInfo`, as in `/info`.
    """
    devices = {name.strip().partition(":")[0] for name in str(info.get("device", "")).split(",")}
    names = ("encoding_sha256", "deterministic", "compiled", "readout_layer")
    return {**{name: info.get(name) for name in names}, "device": ",".join(sorted(devices))}


class Executor(ABC):
    """Scores conversations. Use from one thread; coroutines run on a thread of the executor.

    That thread ends with the process, even while a call waits for a service that never responds.

    Attributes:
        drain_timeout_s: seconds that a stopping job waits for calls in flight; None to wait until
            they are finished. Set for services, which may never respond: `resolve_identity` and
            `count_tokens` may then be interrupted as well.
    """

    drain_timeout_s: float | None = None

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Held while a call is scored.
        self._turn: AbstractAsyncContextManager[None] = contextlib.nullcontext()

    @abstractmethod
    def resolve_identity(self) -> dict[str, Any]:
        """Return everything that decides the rewards, as JSON data.

        A job resumes only if its identity is unchanged. This method loads no weights: it is called
        before anything is scored, and also when nothing is left to score.

        Raises:
            RewardError: the model or the service does not exist.
        """

    @abstractmethod
    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """Return the model; None if it is not known yet, and not loaded or queried by `fetch`.

        Raises:
            RewardError: `fetch` failed, as for `resolve_identity`.
        """

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Useful number of calls in flight, at least 1; may change while the job runs."""

    @abstractmethod
    def count_tokens(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation, in order, without scoring.

        Raises:
            RewardError: the executor failed, as for the future of `submit`.
        """

    def submit(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Start to score distinct conversations, at least one, and return at once.

        The future can be cancelled until `_score` is called. It fails only if the executor itself
        fails (the service is gone, the model cannot be loaded), with a `RewardError`; this ends the
        job, which can be resumed.
        """
        future: Future[ScoreBatchResult] = Future()

        async def start_task() -> None:
            task = asyncio.create_task(self._run_call(future, conversations, truncation))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._run(start_task())
        return future

    def close(self) -> None:
        """Release models and connections; calls in flight are abandoned."""
        if self._loop is None or self._thread is None:
            return
        try:
            self._run(self._stop()).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    @abstractmethod
    async def _prepare(self, conversations: Sequence[ScoringInput], truncation: Truncation) -> Any:
        """Return what `_score` needs: connect and tokenize, for example."""

    @abstractmethod
    async def _score(self, prepared: Any) -> ScoreBatchResult:
        """Score a call from what `_prepare` returned."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Release what the executor holds; called once, after the last call."""

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the thread, which starts at the first call."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="executor", daemon=True
            )
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _run_call(
        self,
        future: Future[ScoreBatchResult],
        conversations: Sequence[ScoringInput],
        truncation: Truncation,
    ) -> None:
        try:
            prepared = await self._prepare(conversations, truncation)
            async with self._turn:
                if future.set_running_or_notify_cancel():
                    future.set_result(await self._score(prepared))
        except asyncio.CancelledError:
            if not future.cancel():
                future.set_exception(
                    NotReadyError("the job is stopping; run the same command again for the rest")
                )
            raise
        # Any exception must reach the future, or its waiter would never return.
        except Exception as error:
            if not future.cancelled():
                future.set_exception(error)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()
