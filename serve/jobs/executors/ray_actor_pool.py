"""Pool of Ray actors: starts as many as fit on the cluster, and replaces those that die.

By default the pool has one actor per GPU, or per group of GPUs that a model is spread over; on a
cluster without GPUs, one actor per node with all its CPUs. If the user gives a number, all actors
are requested at once, and those without room wait, which makes an autoscaler add nodes. The pool
checks the cluster every few seconds and grows with it. Use from one thread, with Ray connected.
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

# Consecutive deaths during loading that are tolerated, per actor of the target size.
_MAX_BAD_STARTS = 3
_RETRY_S = 5.0
_WARN_AFTER_S = 60.0
# An actor that misses this many polls, some seconds apart, is considered stuck. Polls are counted
# instead of seconds: after a suspension of this process, all actors would seem stuck.
_MAX_MISSED_POLLS = 40


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The resource that one actor needs, such as 1 GPU or 8 CPUs."""

    kind: str
    amount: int

    def __str__(self) -> str:
        return f"{self.amount} {self.kind}{'s' if self.amount > 1 else ''}"

    def count_slots(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Return how many actors fit on the nodes, without regard to other work on them.

        Args:
            nodes: resources of each node.
        """
        return sum(int(node.get(self.kind, 0) // self.amount) for node in nodes)


def choose_resource_request(
    model: ModelConfig, num_actors: int | None, nodes: list[Mapping[str, float]]
) -> ResourceRequest:
    """Choose the resource of an actor for a whole job: rewards depend on the kind of device.

    Args:
        model: model configuration with `device` and `num_devices`.
        num_actors: requested number of actors; None for as many as fit.
        nodes: resources of each node.
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
    """One actor of the pool.

    Attributes:
        actor: handle of the Ray actor.
        in_flight: units that the actor has, oldest first.
        is_up: whether the model is loaded.
        rejection_reason: why the actor cannot score; None if it can. A rejected actor keeps its
            slot, so that no other actor fails there again.
        num_missed_polls: number of polls since the last response about whether it is stuck.
    """

    actor: Any
    in_flight: list[WorkUnit] = field(default_factory=list)
    is_up: bool = False
    rejection_reason: str | None = None
    num_missed_polls: int = 0

    @property
    def is_reserved(self) -> bool:
        """Whether the actor has a unit that needs an actor without other units."""
        return any(unit.needs_own_actor for unit in self.in_flight)


class ActorPool:
    """The actors of a job.

    Args:
        model: configuration of the model that every actor loads.
        num_actors: see `choose_resource_request`.
        actor: class of the actors.
        on_loaded: called on any thread when an actor has loaded its model or failed to.
        on_stall_report: called on any thread with the reason why an actor is stuck, or None.
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
        self._on_loaded, self._on_stall_report = on_loaded, on_stall_report
        self._handles: list[ActorHandle] = []
        self._fingerprint: Fingerprint | None = None
        self._num_bad_starts, self._last_failure, self._retry_at = 0, "", 0.0
        self._idle_since = time.monotonic()
        nodes = self._nodes()
        self._request = choose_resource_request(model, num_actors, nodes)
        self._num_slots = self._request.count_slots(nodes)
        on_gpu = self._request.kind == "GPU"
        settings = ActorSettings(
            replace(model, device="auto" if on_gpu else "cpu"),
            __version__,
            None if on_gpu else self._request.amount,
        )
        self._start: Callable[[], Any] = partial(self._remote(actor, on_gpu).remote, settings)

    @property
    def ready_actors(self) -> list[ActorHandle]:
        """Actors that can score."""
        return [handle for handle in self._handles if handle.is_up]

    @property
    def resource_kind(self) -> str:
        """Kind of resource that actors use: `GPU` or `CPU`."""
        return self._request.kind

    @property
    def target_size(self) -> int:
        """Number of actors that the pool should have."""
        return self._num_actors or max(1, self._num_slots)

    def reconcile(self) -> None:
        """Start missing actors, and remove idle ones for which the cluster lost the room."""
        self._num_slots = self._request.count_slots(self._nodes())
        idle = sorted(
            (handle for handle in self._handles if not handle.is_up),
            key=lambda handle: not handle.rejection_reason,
        )
        for handle in idle[: max(0, len(self._handles) - self.target_size)]:
            self.remove(handle)
        self.start_missing()
        if self.ready_actors:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > _WARN_AFTER_S:
            self._idle_since = time.monotonic()
            logger.warning(
                "no actor is up yet; each actor needs %s, and the cluster has room for %d",
                self._request,
                self._num_slots,
            )

    def start_missing(self) -> None:
        """Start actors until the pool has its target size."""
        if time.monotonic() < self._retry_at:
            return
        while len(self._handles) < self.target_size:
            handle = ActorHandle(self._start())
            self._handles.append(handle)
            loading = handle.actor.load.remote().future()
            loading.add_done_callback(lambda future, handle=handle: self._on_loaded(handle, future))

    def poll_stalls(self) -> list[ActorHandle]:
        """Ask all ready actors whether they are stuck.

        Returns:
            Actors that have missed too many polls.
        """
        for handle in self.ready_actors:
            if not handle.num_missed_polls:
                report = handle.actor.stall_reason.remote().future()
                report.add_done_callback(
                    lambda future, handle=handle: self._on_stall_report(handle, future)
                )
            handle.num_missed_polls += 1
        return [
            handle for handle in self.ready_actors if handle.num_missed_polls > _MAX_MISSED_POLLS
        ]

    def finish_loading(self, handle: ActorHandle, loading: Future[dict[str, Any]]) -> None:
        """Handle the end of an actor's loading, successful or not."""
        from ray.exceptions import RayActorError

        if handle not in self._handles:
            return
        try:
            fingerprint = Fingerprint(**loading.result())
        except RewardError as error:
            self._reject(handle, error.detail)
        except RayActorError as error:
            self.remove(handle)
            self._num_bad_starts += 1
            self._last_failure = (
                f"an actor died while loading the model: {summarize_ray_error(error)}"
            )
            self._retry_at = time.monotonic() + _RETRY_S
            logger.warning("%s", self._last_failure)
        # With any other exception, the actor cannot score.
        except Exception as error:
            self._reject(handle, f"{type(error).__name__} {summarize_ray_error(error)}")
        else:
            self._fingerprint = self._fingerprint or fingerprint
            if reason := find_incompatibility(self._fingerprint, fingerprint):
                self._reject(handle, reason)
            else:
                handle.is_up = True
                self._num_bad_starts = 0

    def remove(self, handle: ActorHandle) -> None:
        """Remove an actor and end its process if it is still alive."""
        if handle in self._handles:
            self._handles.remove(handle)
            self._ray.kill(handle.actor)

    def close(self) -> None:
        """Remove all actors."""
        for handle in list(self._handles):
            self.remove(handle)

    def fatal_reason(self) -> str | None:
        """Return why no actor will ever score, or None while one may."""
        if self.ready_actors:
            return None
        if self._num_bad_starts >= _MAX_BAD_STARTS * self.target_size:
            return self._last_failure
        rejection_reasons = [
            handle.rejection_reason for handle in self._handles if handle.rejection_reason
        ]
        if rejection_reasons and len(rejection_reasons) >= min(
            self.target_size, max(1, self._num_slots)
        ):
            return rejection_reasons[-1]
        return None

    def _reject(self, handle: ActorHandle, reason: str) -> None:
        handle.rejection_reason = reason
        logger.warning("an actor cannot score: %s", reason)

    def _remote(self, actor: type[ScorerActor], on_gpu: bool) -> Any:
        # The pool replaces dead actors, not Ray, which would send them the same call again. An
        # actor on a GPU requests no CPU, so that it fits wherever a GPU is free.
        return self._ray.remote(actor).options(
            num_gpus=self._request.amount if on_gpu else 0,
            num_cpus=0 if on_gpu else self._request.amount,
            max_concurrency=3,  # two calls to score, one to report a stall
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


def summarize_ray_error(error: BaseException) -> str:
    """Return the most informative line of a Ray error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "exit" in line or "dead" in line]
    line = (telling or lines or [type(error).__name__])[-1]
    return line.split(" Some common causes")[0][:300]
