"""Executor on a Ray cluster: a pool of plain actors, each with the model on its own device.

The executor uses plain actors instead of Ray Data, because the job itself handles chunks, order and
resuming for all executors, so only calls remain to be distributed. Measured on Ray 2.60, Ray Data
survives a killed worker but aborts the whole job on one exception, resuming from its checkpoint
hung or failed an assertion, and 10,000 rows took 7 s against 0.19 s in plain Python. Ray Data also
does not find the conversation that crashes a worker.

Every node needs the same version of this package, with torch and transformers (which is why the
package is not sent along), and the checkpoint under the same name: a hub id, or a folder that all
nodes see. Actors with another version or checkpoint are rejected; the settings of the model are
sent to them by value.

One thread owns all state (`_run`) and waits for events: a new call, a result, an actor that is
loaded, lost or stuck. `serve.jobs.executors.bisect` handles the work of lost actors,
`serve.jobs.executors.ray_actor_pool` decides the number of actors.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from rm_core import (
    DeviceFailedError,
    Encoded,
    ModelConfig,
    ModelLoadError,
    RewardError,
    ScoreError,
    ScoringError,
    Truncation,
    load_encoder,
)
from rm_core.inputs.conversations import ChatJson
from serve.deployments.cluster import connect
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.executors.bisect import SubmittedCall, WorkUnit
from serve.jobs.executors.local import resolve_local_identity
from serve.jobs.executors.ray_actor import ScorerActor
from serve.jobs.executors.ray_actor_pool import ActorHandle, ActorPool, summarize_ray_error

logger = logging.getLogger(__name__)

# An actor tokenizes one call while another is on its device.
_CALLS_PER_ACTOR = 2
_LOOK_EVERY_S = 3.0


class RayExecutor:
    """Scores on a Ray cluster; connects on first use.

    Args:
        model: configuration of the model that every actor loads.
        address: address of the cluster; see `serve.deployments.cluster.connect`.
        num_actors: exact number of actors to request; None for as many as fit.
        actor: class of the actors.
    """

    drain_timeout_s: float | None = None

    def __init__(
        self,
        model: ModelConfig,
        address: str,
        num_actors: int | None = None,
        actor: type[ScorerActor] = ScorerActor,
    ) -> None:
        self._model, self._address, self._num_actors = model, address, num_actors
        self._actor = actor
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pool: ActorPool | None = None
        self._calls: set[SubmittedCall] = set()
        self._queue: deque[WorkUnit] = deque()
        self._suspects: deque[WorkUnit] = deque()
        self._failure: RewardError | None = None
        self._has_begun = False
        self._num_up = 0

    def resolve_identity(self) -> dict[str, Any]:
        """See `Executor`; connects to the cluster, because its GPUs decide the dtype."""
        if self._address == "local":
            return resolve_local_identity(self._model)
        kind: Future[str] = Future()
        self._post(partial(self._resolve_kind, kind))
        # This machine may not have a GPU; the rest of the identity is the same for both devices.
        identity = resolve_local_identity(replace(self._model, device="cpu", num_devices=1))
        if kind.result() == "GPU":
            dtype = "bfloat16" if self._model.dtype == "auto" else self._model.dtype
            identity |= {"device": "cuda", "dtype": dtype}
        return identity

    @property
    def capacity(self) -> int:
        """See `Executor`."""
        return _CALLS_PER_ACTOR * max(1, self._num_up)

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """See `Executor`."""
        call = SubmittedCall(conversations, truncation)
        self._post(partial(self._accept, call))
        return call.future

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """See `Executor`."""
        encoded = load_encoder(self._model).encode_all(conversations, truncation)
        return [item.num_tokens if isinstance(item, Encoded) else item for item in encoded]

    def close(self) -> None:
        """See `Executor`."""
        if self._thread is not None:
            self._events.put(None)
            self._thread.join()
            self._thread = None

    def _post(self, event: Callable[[], None]) -> None:
        self._events.put(event)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ray-pool", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Run the thread: connect, and handle events until `close` or a failure."""
        has_joined = False
        try:
            has_joined = connect(self._address)
            self._pool = ActorPool(
                self._model, self._num_actors, self._actor, self._on_loaded, self._on_stall_report
            )
            self._serve_events(self._pool)
        except RewardError as error:
            self._fail(error)
        # At the boundary of the thread, any exception must reach the waiting futures.
        except Exception as error:
            self._fail(ScoringError(f"the pool of actors failed: {summarize_ray_error(error)}"))
        finally:
            self._disconnect(has_joined)
        while self._failure is not None and (event := self._events.get()) is not None:
            event()
        for call in self._calls:
            call.future.cancel()

    def _serve_events(self, pool: ActorPool) -> None:
        next_look = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(0.01, next_look - time.monotonic()))
                if event is None:
                    return
                event()
            if self._has_begun and time.monotonic() >= next_look:
                pool.reconcile()
                for handle in pool.poll_stalls():
                    self._give_up(handle, "the actor does not respond")
                next_look = time.monotonic() + _LOOK_EVERY_S
            if reason := pool.fatal_reason():
                raise ModelLoadError(f"no actor of the pool can score: {reason}")
            self._num_up = len(pool.ready_actors)
            self._dispatch(pool)

    def _disconnect(self, has_joined: bool) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            if self._pool is not None:
                self._pool.close()
        if has_joined:
            import ray

            ray.shutdown()

    def _fail(self, error: RewardError) -> None:
        self._failure = error
        for call in self._calls:
            call.fail(error)

    def _accept(self, call: SubmittedCall) -> None:
        if self._failure is not None:
            call.fail(self._failure)
            return
        self._has_begun = True
        self._calls.add(call)
        self._queue.append(WorkUnit.from_call(call))

    def _resolve_kind(self, kind: Future[str]) -> None:
        if self._failure is not None or self._pool is None:
            kind.set_exception(self._failure or ScoringError("the pool of actors is closed"))
        else:
            kind.set_result(self._pool.resource_kind)

    def _on_loaded(self, handle: ActorHandle, loading: Future[dict[str, Any]]) -> None:
        # Called on a thread of Ray.
        self._events.put(lambda: self._pool.finish_loading(handle, loading) if self._pool else None)

    def _on_stall_report(self, handle: ActorHandle, report: Future[str | None]) -> None:
        # Called on a thread of Ray.
        self._events.put(lambda: self._handle_stall_report(handle, report))

    def _handle_stall_report(self, handle: ActorHandle, report: Future[str | None]) -> None:
        """Handle an actor's report of whether it is stuck."""
        from ray.exceptions import RayError

        handle.num_missed_polls = 0
        # If the actor is dead, its calls fail as well.
        with contextlib.suppress(RayError):
            if reason := report.result():
                self._give_up(handle, reason)

    def _dispatch(self, pool: ActorPool) -> None:
        """Send units to free actors: suspects first, each to an actor without other units."""
        free = sorted(
            (handle for handle in pool.ready_actors if not handle.is_reserved),
            key=lambda handle: len(handle.in_flight),
        )
        while self._suspects and free and not free[0].in_flight:
            self._send(free.pop(0), self._suspects.popleft())
        # Reserve one busy actor for each waiting suspect; they get it once it is idle.
        unreserved = free[len(self._suspects) :]
        for depth in range(_CALLS_PER_ACTOR):
            for handle in unreserved:
                while self._queue and len(handle.in_flight) == depth:
                    self._send(handle, self._queue.popleft())

    def _send(self, handle: ActorHandle, unit: WorkUnit) -> None:
        if not unit.call.try_start():
            self._calls.discard(unit.call)
            return
        handle.in_flight.append(unit)
        result = handle.actor.run_batch.remote(unit.conversations, unit.call.truncation).future()
        result.add_done_callback(
            lambda future: self._events.put(lambda: self._handle_result(handle, unit, future))
        )

    def _handle_result(
        self, handle: ActorHandle, unit: WorkUnit, result: Future[ScoreBatchResult]
    ) -> None:
        from ray.exceptions import RayError, RayTaskError

        if unit not in handle.in_flight:  # the actor was given up
            return
        handle.in_flight.remove(unit)
        try:
            unit.complete(result.result())
        except DeviceFailedError as error:
            self._handle_loss(handle, [unit], error.detail)
        except RayTaskError as error:
            self._suspects += unit.handle_error(error)
        except RayError as error:
            self._handle_loss(handle, [unit], summarize_ray_error(error))
        self._forget_if_done(unit.call)

    def _give_up(self, handle: ActorHandle, reason: str) -> None:
        """Remove an actor that is alive and does not respond."""
        units, handle.in_flight = handle.in_flight, []
        self._handle_loss(handle, units, reason)
        for unit in units:
            self._forget_if_done(unit.call)

    def _handle_loss(self, handle: ActorHandle, units: Sequence[WorkUnit], reason: str) -> None:
        """Reassign the units of a lost actor, and start another actor."""
        assert self._pool is not None
        logger.warning("an actor was lost with %d conversations: %s", sum(map(len, units)), reason)
        for unit in units:
            self._suspects += unit.handle_actor_loss()
        self._pool.remove(handle)
        self._pool.start_missing()

    def _forget_if_done(self, call: SubmittedCall) -> None:
        if call.future.done():
            self._calls.discard(call)
