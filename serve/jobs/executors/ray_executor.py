"""A job on a Ray cluster: a pool of plain actors, each with the model on a device of its own.

Plain actors and not Ray Data: chunks, order and resuming are the job's own, for all its ways to
run, so all that is left to carry is calls. Measured on Ray 2.60, Ray Data survives a killed worker
but aborts the whole job on one exception, its checkpoint's resume hung or asserted, and 10,000
rows cost 7 s against 0.19 s in plain Python. And nothing in it finds the conversation that kills.

Every node needs this package in the same version, with torch and transformers as a matter of
course (that is why it is not sent along), and the checkpoint under the same name: a hub id, or a
folder that all nodes see. Actors of another version or checkpoint are refused; the settings of the
model go to them by value.

One thread owns all state (`_run`); it waits for events: a call, an answer, an actor that is
loaded, lost or stuck. What it does about lost ones: `serve.jobs.executors.bisect`; how many there
are: `serve.jobs.executors.ray_actor_pool`.
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
    """The carrier that scores on Ray; connects when it has to.

    Args:
        model: what every actor loads.
        address: of the cluster; see `serve.deployments.cluster.connect`.
        num_actors: exactly so many are asked for; None for as many as the cluster has room for.
        actor: their class.
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
        self._seats: ActorPool | None = None
        self._calls: set[SubmittedCall] = set()
        self._fresh: deque[WorkUnit] = deque()
        self._suspects: deque[WorkUnit] = deque()
        self._failure: RewardError | None = None
        self._has_begun = False
        self._num_up = 0

    def resolve_identity(self) -> dict[str, Any]:
        """See `Executor`; joins a cluster to see whether it has GPUs, which decide the dtype."""
        if self._address == "local":
            return resolve_local_identity(self._model)
        kind: Future[str] = Future()
        self._post(partial(self._tell_kind, kind))
        # Here may be no GPU: what the files say is the same for both.
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
        self._post(partial(self._take, call))
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
        """The thread: connected until it is told to stop, or the whole way fails."""
        joined = False
        try:
            joined = connect(self._address)
            self._seats = ActorPool(
                self._model, self._num_actors, self._actor, self._loaded, self._told
            )
            self._serve_events(self._seats)
        except RewardError as error:
            self._fail(error)
        # The border of the thread: whatever it is, nobody may wait for ever.
        except Exception as error:
            self._fail(ScoringError(f"the pool of actors failed: {summarize_ray_error(error)}"))
        finally:
            self._leave(joined)
        while self._failure is not None and (event := self._events.get()) is not None:
            event()
        for call in self._calls:
            call.future.cancel()

    def _serve_events(self, seats: ActorPool) -> None:
        next_look = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(0.01, next_look - time.monotonic()))
                if event is None:
                    return
                event()
            if self._has_begun and time.monotonic() >= next_look:
                seats.reconcile()
                for seat in seats.poll_stalls():
                    self._give_up(seat, "it does not answer")
                next_look = time.monotonic() + _LOOK_EVERY_S
            if why := seats.fatal_reason():
                raise ModelLoadError(f"no actor of the pool can score: {why}")
            self._num_up = len(seats.ready_actors)
            self._pump(seats)

    def _leave(self, joined: bool) -> None:
        with contextlib.suppress(Exception):  # it may be gone itself
            if self._seats is not None:
                self._seats.close()
        if joined:
            import ray

            ray.shutdown()

    def _fail(self, error: RewardError) -> None:
        self._failure = error
        for call in self._calls:
            call.fail(error)

    def _take(self, call: SubmittedCall) -> None:
        if self._failure is not None:
            call.fail(self._failure)
            return
        self._has_begun = True
        self._calls.add(call)
        self._fresh.append(WorkUnit.from_call(call))

    def _tell_kind(self, kind: Future[str]) -> None:
        if self._failure is not None or self._seats is None:
            kind.set_exception(self._failure or ScoringError("there is no pool of actors"))
        else:
            kind.set_result(self._seats.resource_kind)

    def _loaded(self, seat: ActorHandle, loading: Future[dict[str, Any]]) -> None:
        # On some thread of Ray's.
        self._events.put(lambda: self._seats.finish_loading(seat, loading) if self._seats else None)

    def _told(self, seat: ActorHandle, answer: Future[str | None]) -> None:
        # On some thread of Ray's.
        self._events.put(lambda: self._heard(seat, answer))

    def _heard(self, seat: ActorHandle, answer: Future[str | None]) -> None:
        """Whether an actor is stuck."""
        from ray.exceptions import RayError

        seat.num_missed_polls = 0
        # If it is dead, the calls that it has tell so.
        with contextlib.suppress(RayError):
            if why := answer.result():
                self._give_up(seat, why)

    def _pump(self, seats: ActorPool) -> None:
        """Give work to whoever can take some: suspects first, to actors that have nothing."""
        free = sorted(
            (seat for seat in seats.ready_actors if not seat.is_reserved),
            key=lambda seat: len(seat.in_flight),
        )
        while self._suspects and free and not free[0].in_flight:
            self._send(free.pop(0), self._suspects.popleft())
        # Suspects that still wait get the next ones to be done with what they have.
        rest = free[len(self._suspects) :]
        for depth in range(_CALLS_PER_ACTOR):
            for seat in rest:
                while self._fresh and len(seat.in_flight) == depth:
                    self._send(seat, self._fresh.popleft())

    def _send(self, seat: ActorHandle, piece: WorkUnit) -> None:
        if not piece.call.try_start():
            self._calls.discard(piece.call)
            return
        seat.in_flight.append(piece)
        answer = seat.actor.run_batch.remote(piece.conversations, piece.call.truncation).future()
        answer.add_done_callback(
            lambda future: self._events.put(lambda: self._answered(seat, piece, future))
        )

    def _answered(
        self, seat: ActorHandle, piece: WorkUnit, answer: Future[ScoreBatchResult]
    ) -> None:
        from ray.exceptions import RayError, RayTaskError

        if piece not in seat.in_flight:  # it was given up
            return
        seat.in_flight.remove(piece)
        try:
            piece.complete(answer.result())
        except DeviceFailedError as error:
            self._lost(seat, [piece], error.detail)
        except RayTaskError as error:
            self._suspects += piece.handle_error(error)
        except RayError as error:
            self._lost(seat, [piece], summarize_ray_error(error))
        self._forget_if_done(piece.call)

    def _give_up(self, seat: ActorHandle, why: str) -> None:
        """Let go of an actor that lives and will not answer."""
        pieces, seat.in_flight = seat.in_flight, []
        self._lost(seat, pieces, why)
        for piece in pieces:
            self._forget_if_done(piece.call)

    def _lost(self, seat: ActorHandle, pieces: Sequence[WorkUnit], why: str) -> None:
        """What an actor had goes to others, and another comes in its place."""
        assert self._seats is not None
        logger.warning("an actor was lost with %d conversations: %s", sum(map(len, pieces)), why)
        for piece in pieces:
            self._suspects += piece.handle_actor_loss()
        self._seats.remove(seat)
        self._seats.start_missing()

    def _forget_if_done(self, call: SubmittedCall) -> None:
        if call.future.done():
            self._calls.discard(call)
