"""How the gateway reaches the replicas of a model: one in this process, or those of a deployment.

Both answer the same questions and raise only errors of `rm_core.errors` and of this module.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rm_core import (
    Fingerprint,
    NotReadyError,
    RewardScorer,
    ScoredBatch,
    open_checkpoint,
)
from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.errors import (
    ReplicaBusyError,
    ReplicaLostError,
    ReplicaRejectedBatchError,
    ReplicaUnhealthyError,
)
from serve.worker.worker import Worker, WorkerResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One batch, scored.

    Attributes:
        batch: reward i belongs to sequence i.
        inference_s: seconds on the device.
        fingerprint: of the model that scored it.
    """

    batch: ScoredBatch
    inference_s: float
    fingerprint: Fingerprint

    @classmethod
    def from_worker_result(cls, result: WorkerResult) -> BatchResult:
        """What an engine answered."""
        return cls(result.batch, result.inference_s, Fingerprint(**result.fingerprint))


class Backend(Protocol):
    """Where the rewards of one model come from.

    Attributes:
        num_replicas: that are up, as far as is known.
    """

    num_replicas: int

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """One batch through one replica; reward i belongs to sequence i.

        Args:
            sequences: token ids, none empty, distinct.
            backlog_tokens: what waits besides, for the scaling of replicas.

        Raises:
            ReplicaLostError, ReplicaBusyError: see there; send it again.
            RewardError: the model will not answer.
        """
        ...

    def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """Each alone through one replica, one after another.

        Args:
            sequences: as of `score`.
            backlog_tokens: as of `score`.

        Yields:
            None once the replica begins with the first; then each answer as soon as it is there.

        Raises:
            ReplicaLostError: the one that would have come next was on the device, if it began.
            ReplicaBusyError, RewardError: as of `score`.
        """
        ...

    async def describe(self) -> dict[str, Any]:
        """Effective settings of the loaded model; waits until it is loaded and warmed up.

        Raises:
            RewardError: it will not become ready, or not now.
        """
        ...

    async def refresh(self) -> None:
        """Find out how many replicas are up.

        Raises:
            RewardError: one that was up cannot score any more, and there is no other.
        """
        ...


class LocalBackend:
    """A model in this process."""

    def __init__(self, worker: Worker) -> None:
        self.num_replicas = 1
        self._worker = worker

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """See `Backend`."""
        with _translate_errors():
            return BatchResult.from_worker_result(await self._worker.run_batch(sequences))

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """See `Backend`."""
        with _translate_errors():
            async for answer in self._worker.run_one_by_one(sequences):
                yield None if answer is None else BatchResult.from_worker_result(answer)

    async def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        return self._worker.describe()

    async def refresh(self) -> None:
        """See `Backend`."""
        self._worker.check_health()


class RayBackend:
    """The replicas of a Serve deployment, called through its handle.

    Args:
        alias: name of the model, for messages.
        handle: of the deployment. Calls go by value: a batch is small, and that costs half as much
            as going through the object store.
    """

    def __init__(self, alias: str, handle: Any) -> None:
        self.num_replicas = 0
        self._alias = alias
        self._deployment = handle.deployment_name
        self._handle = handle.options(_by_reference=False)
        self._gateway = uuid.uuid4().hex

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """See `Backend`."""
        with _translate_ray_errors(self._alias):
            method = self._handle.run_batch
            return BatchResult.from_worker_result(
                await method.remote(list(sequences), backlog_tokens, self._gateway)
            )

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """See `Backend`."""
        with _translate_ray_errors(self._alias):
            method = self._handle.options(stream=True).run_one_by_one
            async for answer in method.remote(list(sequences), backlog_tokens, self._gateway):
                yield None if answer is None else BatchResult.from_worker_result(answer)

    async def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        with _translate_ray_errors(self._alias):
            answer: dict[str, Any] = await self._handle.describe.remote()
            return answer

    async def refresh(self) -> None:
        """See `Backend`."""
        self.num_replicas = await asyncio.to_thread(_count_running, self._deployment)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """What an engine raises, as its gateway sees it."""
    try:
        yield
    except ReplicaRejectedBatchError as error:
        raise ReplicaBusyError(error.detail) from error
    except ReplicaUnhealthyError as error:
        raise ReplicaLostError.for_replica(
            error.detail, uuid.uuid4().hex, "replica_unhealthy"
        ) from error


@contextmanager
def _translate_ray_errors(alias: str) -> Iterator[None]:
    """What a call to a replica raises, as its gateway sees it."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        with _translate_errors():
            yield
    except RayActorError as error:
        replica = error.actor_id or uuid.uuid4().hex
        raise ReplicaLostError.for_replica(
            f"replica {replica} is gone", replica, "replica_lost"
        ) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not we: the connection was closed, by `serve.deployments.router`.
        told = "the machine of a replica is gone"
        raise ReplicaLostError.for_replica(told, uuid.uuid4().hex, "replica_lost") from error
    except BackPressureError as error:
        raise ReplicaBusyError(f"model {alias!r} is at its limit; try again") from error
    except DeploymentUnavailableError as error:
        raise NotReadyError(
            f"model {alias!r} has no replica and will get none until it is deployed again"
        ) from error


def _count_running(deployment: str) -> int:
    """Replicas of a deployment of this process's own application that are up."""
    from ray import serve as ray_serve

    app_name = ray_serve.get_replica_context().app_name
    application = ray_serve.status().applications.get(app_name)
    if application is None or deployment not in application.deployments:
        return 0
    states = application.deployments[deployment].replica_states
    return sum(number for state, number in states.items() if state == "RUNNING")


def pin_revision(settings: ModelSettings) -> ModelSettings:
    """The settings with the commit of a hub checkpoint as their revision; others as they are.

    Raises:
        ModelLoadError: the hub checkpoint, or its revision, cannot be found.
    """
    if not settings.is_on_hub:
        return settings
    commit = open_checkpoint(settings.to_model_config(), weights=False).revision
    return settings.model_copy(update={"revision": commit})


def pin_settings(settings: ModelSettings) -> ModelSettings:
    """The settings with everything fixed that gateways and replicas have to agree on.

    Raises:
        ModelLoadError: the hub checkpoint, or its revision, cannot be found.
    """
    settings = pin_revision(settings)
    # Replicas start on different days; a template that writes the date must not follow them.
    today = datetime.date.today().isoformat()
    return settings.model_copy(update={"template_date": settings.template_date or today})


def load_scorer(settings: ModelSettings) -> RewardScorer:
    """Load a model and warm it up, telling the log of each stage.

    Raises:
        ModelLoadError: it cannot be loaded, or would score wrongly.
        ScoringError: it cannot score the warm-up conversation.
    """
    started = time.perf_counter()
    logger.info("%s: loading", settings.alias)
    scorer = RewardScorer.load(settings.to_model_config(), settings.to_batch_config())
    loaded = time.perf_counter()
    logger.info("%s: loaded in %.1f s, warming up", settings.alias, loaded - started)
    scorer.warm_up()
    logger.info("%s: warmed up in %.1f s", settings.alias, time.perf_counter() - loaded)
    return scorer
