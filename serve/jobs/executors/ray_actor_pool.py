"""The actors of a pool: as many as the cluster has room for, new ones for those that die.

How many: one for each GPU, or for as many as a model is spread over; on a cluster without GPUs one
for each node, with all its CPUs. A number that is asked for is asked for at once, and what finds no
room waits for it: that is what makes an autoscaler add nodes. The cluster is looked at every few
seconds, so the pool grows with it. Used from one thread; needs Ray to be there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rm_core import Fingerprint, ModelConfig, RewardError
from serve import __version__
from serve.jobs.executors.bisect import WorkUnit
from serve.jobs.executors.ray_actor import ActorSettings, ScorerActor, find_incompatibility

logger = logging.getLogger(__name__)

# So many actors in a row may die while they load, for each there is room for.
_MAX_BAD_STARTS = 3
_RETRY_S = 5.0
_SAY_AFTER_S = 60.0
# An actor that has not said by so many looks, some seconds apart, whether it is stuck is stuck. Not
# by a clock: all of them would be, once this process was suspended.
_MAX_SILENT_LOOKS = 40


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What one actor takes of a node: some of one kind of resource."""

    kind: str
    amount: int

    def __str__(self) -> str:
        return f"{self.amount} {self.kind}{'s' if self.amount > 1 else ''}"

    def count_slots(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """For how many actors there is room in all, whatever else runs.

        Args:
            nodes: the resources of each.
        """
        return sum(int(node.get(self.kind, 0) // self.amount) for node in nodes)


def choose_resource_request(
    model: ModelConfig, num_actors: int | None, nodes: list[Mapping[str, float]]
) -> ResourceRequest:
    """What an actor takes, for the whole of a job: rewards depend on the kind of device.

    Args:
        model: with `device` and `num_devices`.
        num_actors: that are asked for; None for as many as there is room for.
        nodes: the resources of each.
    """
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    if model.device.startswith("cuda") or (model.device == "auto" and has_gpus):
        return ResourceRequest("GPU", model.num_devices)
    sizes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    for amount in range(min(sizes, default=1), 1, -1):
        if ResourceRequest("CPU", amount).count_slots(nodes) >= (num_actors or 1):
            return ResourceRequest("CPU", amount)
    return ResourceRequest("CPU", 1)


@dataclass(eq=False, slots=True)
class ActorHandle:
    """One actor.

    Attributes:
        in_flight: what it has, oldest first.
        is_up: its model is loaded.
        refused: why it will never be; it keeps its place, so that no other tries in vain there.
        num_silent_looks: how often it was looked at since it was asked whether it is stuck.
    """

    actor: Any
    in_flight: list[WorkUnit] = field(default_factory=list)
    is_up: bool = False
    rejection_reason: str | None = None
    num_missed_polls: int = 0

    @property
    def is_reserved(self) -> bool:
        """Whether what it has must be alone with it."""
        return any(piece.needs_own_actor for piece in self.in_flight)


class ActorPool:
    """The actors.

    Args:
        model: what they load.
        num_actors: see `choose_resource_request`.
        actor: their class.
        loaded: is told, on some thread, when one has loaded or failed to.
        told: is told, on some thread, why one is stuck, or None.
    """

    def __init__(
        self,
        model: ModelConfig,
        num_actors: int | None,
        actor: type[ScorerActor],
        on_loaded: Callable[[ActorHandle, Future[dict[str, Any]]], None],
        on_stall_report: Callable[[ActorHandle, Future[str | None]], None],
    ) -> None:
        import ray

        self._ray = ray
        self._num_actors = num_actors
        self._loaded, self._told = on_loaded, on_stall_report
        self._seats: list[ActorHandle] = []
        self._first: Fingerprint | None = None
        self._bad_starts, self._why, self._not_before = 0, "", 0.0
        self._silent_since = time.monotonic()
        nodes = self._nodes()
        self._need = choose_resource_request(model, num_actors, nodes)
        self._room = self._need.count_slots(nodes)
        on_gpu = self._need.kind == "GPU"
        settings = ActorSettings(
            replace(model, device="auto" if on_gpu else "cpu"),
            __version__,
            None if on_gpu else self._need.amount,
        )
        self._start: Callable[[], Any] = partial(self._remote(actor, on_gpu).remote, settings)

    @property
    def ready_actors(self) -> list[ActorHandle]:
        """Those that can score."""
        return [seat for seat in self._seats if seat.is_up]

    @property
    def resource_kind(self) -> str:
        """What actors take of a node: GPUs or CPUs."""
        return self._need.kind

    @property
    def target_size(self) -> int:
        """How many there should be."""
        return self._num_actors or max(1, self._room)

    def reconcile(self) -> None:
        """Start what is missing, and let go of what the cluster has no room for any more."""
        self._room = self._need.count_slots(self._nodes())
        idle = sorted(
            (s for s in self._seats if not s.is_up), key=lambda seat: not seat.rejection_reason
        )
        for seat in idle[: max(0, len(self._seats) - self.target_size)]:
            self.remove(seat)
        self.start_missing()
        if self.ready_actors:
            self._silent_since = time.monotonic()
        elif time.monotonic() - self._silent_since > _SAY_AFTER_S:
            self._silent_since = time.monotonic()
            logger.warning(
                "no actor is up yet; each takes %s, for %d of them there is room in the cluster",
                self._need,
                self._room,
            )

    def start_missing(self) -> None:
        """Start what is missing."""
        if time.monotonic() < self._not_before:
            return
        while len(self._seats) < self.target_size:
            seat = ActorHandle(self._start())
            self._seats.append(seat)
            loading = seat.actor.load.remote().future()
            loading.add_done_callback(lambda future, seat=seat: self._loaded(seat, future))

    def poll_stalls(self) -> list[ActorHandle]:
        """Ask those that can score whether they are stuck.

        Returns:
            Those that have not answered for too long.
        """
        for seat in self.ready_actors:
            if not seat.num_missed_polls:
                asked = seat.actor.stall_reason.remote().future()
                asked.add_done_callback(lambda future, seat=seat: self._told(seat, future))
            seat.num_missed_polls += 1
        return [seat for seat in self.ready_actors if seat.num_missed_polls > _MAX_SILENT_LOOKS]

    def finish_loading(self, handle: ActorHandle, loading: Future[dict[str, Any]]) -> None:
        """What became of one that was loading."""
        from ray.exceptions import RayActorError

        if handle not in self._seats:
            return
        try:
            fingerprint = Fingerprint(**loading.result())
        except RewardError as error:
            self._refuse(handle, error.detail)
        except RayActorError as error:
            self.remove(handle)
            self._bad_starts += 1
            self._why = (
                f"an actor died while it was loading the model: {summarize_ray_error(error)}"
            )
            self._not_before = time.monotonic() + _RETRY_S
            logger.warning("%s", self._why)
        # Whatever else it raised in there: it will not score.
        except Exception as error:
            self._refuse(handle, f"{type(error).__name__} {summarize_ray_error(error)}")
        else:
            self._first = self._first or fingerprint
            if why := find_incompatibility(self._first, fingerprint):
                self._refuse(handle, why)
            else:
                handle.is_up = True
                self._bad_starts = 0

    def remove(self, handle: ActorHandle) -> None:
        """End one, if it has not ended by itself."""
        if handle in self._seats:
            self._seats.remove(handle)
            self._ray.kill(handle.actor)

    def close(self) -> None:
        """End all."""
        for seat in list(self._seats):
            self.remove(seat)

    def fatal_reason(self) -> str | None:
        """Why there will be no actor that scores; None while there is hope."""
        if self.ready_actors:
            return None
        if self._bad_starts >= _MAX_BAD_STARTS * self.target_size:
            return self._why
        refused = [seat.rejection_reason for seat in self._seats if seat.rejection_reason]
        if refused and len(refused) >= min(self.target_size, max(1, self._room)):
            return refused[-1]
        return None

    def _refuse(self, seat: ActorHandle, why: str) -> None:
        seat.rejection_reason = why
        logger.warning("an actor cannot score: %s", why)

    def _remote(self, actor: type[ScorerActor], on_gpu: bool) -> Any:
        # What dies is replaced here, never by Ray: it would send the same call to it again. On a
        # GPU no CPU is asked for, so that there is room wherever there is a GPU.
        return self._ray.remote(actor).options(
            num_gpus=self._need.amount if on_gpu else 0,
            num_cpus=0 if on_gpu else self._need.amount,
            max_concurrency=3,  # two to score, and one to say whether they are stuck
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


def summarize_ray_error(error: BaseException) -> str:
    """The line of a Ray error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "exit" in line or "dead" in line]
    line = (telling or lines or [type(error).__name__])[-1]
    return line.split(" Some common causes")[0][:300]
