"""Backends through which a gateway reaches a model's replicas, and the loading of a model.

Without Ray, the backend is the `serve.worker.worker.Worker` in this process, on Ray Serve a
`RayBackend`. Both raise only errors of `rm_core.errors` and `serve.errors`.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rm_core import (
    BatchResult,
    ModelInfo,
    ModelLoadError,
    NotReadyError,
    RewardError,
    RewardScorer,
    open_checkpoint,
)
from rm_core.model.checkpoint import find_local_folder
from rm_core.model.checkpoint_files import get_hub_commit
from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.errors import ReloadRefusedError, ReplicaBusyError, ReplicaLostError
from serve.worker.commands import ModelCommand, ModelStatus

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 3.0


class Backend(Protocol):
    """Interface to the replicas of one model.

    Attributes:
        num_replicas: number of replicas that are up, as of the last `refresh`.
        sleep_level: 0 if the model is awake, else the level of its sleep, as of the last `refresh`.
        freed_bytes: memory that the last sleep gave back in each process; None if it is not known.
    """

    num_replicas: int

    @property
    def sleep_level(self) -> int:
        """See above."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """Settings of the model in use, as of the last `refresh`; None if they are not known."""
        ...

    @property
    def freed_bytes(self) -> int | None:
        """See above."""
        ...

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """Score one batch on one replica; reward i belongs to sequence i.

        Args:
            sequences: token ids, none empty; a `SequenceBatch` may say more.
            backlog_tokens: number of further queued tokens, for the scaling of replicas.

        Raises:
            ReplicaLostError, ReplicaBusyError: see these classes; send the batch again.
            RewardError: the model will not answer.
        """
        ...

    def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """Score sequences on one replica, one after another, with nothing else on its device.

        Args:
            sequences: see `run_batch`.
            backlog_tokens: see `run_batch`.

        Yields:
            None once the replica begins with the first sequence; then each result as soon as it is
            there.

        Raises:
            ReplicaLostError: the replica is lost; once it had begun, the next sequence was on the
                device.
            ReplicaBusyError, RewardError: see `run_batch`.
        """
        ...

    async def control(self, command: ModelCommand) -> ModelInfo:
        """Let every replica do what a command says; return once all of them have.

        Returns:
            The settings of the model that is staged or in use.

        Raises:
            RewardError: a replica cannot; see `serve.worker.lifecycle.ManagedWorker.control`.
        """
        ...

    async def describe(self) -> ModelInfo:
        """Return the effective settings of the model once it is loaded and warmed up.

        Raises:
            RewardError: the model will not become ready, or not now.
        """
        ...

    async def refresh(self) -> None:
        """Find out how many replicas are up, whether they sleep, and which model they use.

        Raises:
            RewardError: the only replica cannot score any more.
        """
        ...


class RayBackend:
    """The replicas of a Serve deployment, called through its handle.

    Calls pass arguments by value: a batch is small, and that costs half as much as the object
    store. Without the handle of `ModelControl`, no commands are given.
    """

    def __init__(self, alias: str, handle: Any, control: Any = None) -> None:
        self.num_replicas = 0
        self.freed_bytes: int | None = None
        self._alias = alias
        self._control = control
        self._status: ModelStatus | None = None
        self._app, self._deployment = handle.app_name, handle.deployment_name
        self._handle = handle.options(_by_reference=False)
        self._gateway = uuid.uuid4().hex

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """See `Backend`."""
        with _translate_ray_errors(self._alias):
            result: BatchResult = await self._handle.run_batch.remote(
                sequences, backlog_tokens, self._gateway
            )
            return result

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """See `Backend`."""
        with _translate_ray_errors(self._alias):
            method = self._handle.options(stream=True).run_one_by_one
            async for result in method.remote(sequences, backlog_tokens, self._gateway):
                yield result

    @property
    def sleep_level(self) -> int:
        """See `Backend`."""
        return 0 if self._status is None else self._status.sleep_level

    @property
    def info(self) -> ModelInfo | None:
        """See `Backend`."""
        return None if self._status is None else self._status.info

    async def control(self, command: ModelCommand) -> ModelInfo:
        """See `Backend`."""
        assert self._control is not None, "built without `control`"
        try:
            with _translate_ray_errors(self._alias):
                answer: ModelInfo | RewardError = await self._control.run.remote(
                    self._alias, command, self._gateway
                )
        except ReplicaLostError as error:
            raise NotReadyError(
                f"the process that gives commands to the replicas of {self._alias!r} was lost; "
                "they will agree on the state before or after the command: send it again"
            ) from error
        if isinstance(answer, RewardError):
            raise answer
        await self._refresh_status()
        return answer

    async def describe(self) -> ModelInfo:
        """See `Backend`."""
        await self._refresh_status()
        if self.sleep_level and self.info is not None:  # a replica may have loaded nothing yet
            return self.info
        with _translate_ray_errors(self._alias):
            info: ModelInfo = await self._handle.describe.remote()
            return info

    async def refresh(self) -> None:
        """See `Backend`."""
        self.num_replicas = await asyncio.to_thread(_count_running, self._app, self._deployment)
        await self._refresh_status()

    async def _refresh_status(self) -> None:
        """Fetch the state of the model; keep what is known while nobody answers."""
        if self._control is None:
            return
        try:
            with _translate_ray_errors(self._alias):
                call = self._control.get_status.remote(self._alias, self._status)
                self._status = await asyncio.wait_for(call, _STATUS_TIMEOUT_S)
        except (TimeoutError, RewardError) as error:
            logger.warning("%s: its state is not known: %s", self._alias, error or "no answer")


@contextmanager
def _translate_ray_errors(alias: str) -> Iterator[None]:
    """Translate errors of a call to a replica into those of a backend."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        yield
    except RayActorError as error:
        replica = error.actor_id or uuid.uuid4().hex
        raise ReplicaLostError(f"replica {replica} is gone", replica=replica) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not cancelled by us: `serve.deployments.router` closed the connection.
        raise ReplicaLostError(
            "the machine of a replica is gone", replica=uuid.uuid4().hex
        ) from error
    except BackPressureError as error:
        raise ReplicaBusyError(f"model {alias!r} is at its limit; try again") from error
    except DeploymentUnavailableError as error:
        raise NotReadyError(
            f"model {alias!r} has no replica and will get none until it is deployed again"
        ) from error


def _count_running(app_name: str, deployment: str) -> int:
    """Count the running replicas of a deployment."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications.get(app_name)
    if application is None or deployment not in application.deployments:
        return 0
    states = application.deployments[deployment].replica_states
    return sum(number for state, number in states.items() if state == "RUNNING")


def pin_revision(settings: ModelSettings) -> ModelSettings:
    """Return the settings with the revision of a hub checkpoint replaced by its commit."""
    if not settings.is_on_hub:
        return settings
    checkpoint = open_checkpoint(settings.to_model_config(), weights=False)
    if get_hub_commit(checkpoint.path) is None:  # only the adapter is on the hub
        return settings
    return settings.model_copy(update={"revision": checkpoint.revision})


def pin_settings(settings: ModelSettings) -> ModelSettings:
    """Return the settings with all values fixed on which gateways and replicas have to agree."""
    settings = pin_revision(settings)
    # Replicas may start on different days, but their templates must write the same date.
    today = datetime.date.today().isoformat()
    return settings.model_copy(update={"template_date": settings.template_date or today})


def build_stage_command(settings: ModelSettings, source: str, version: str | None) -> ModelCommand:
    """Return the first command of a reload, for a checkpoint that exists.

    The source is a folder, or ORG/NAME@REVISION on the hub; the version defaults to the folder's
    name or the commit.
    """
    folder = find_local_folder(source)
    name, _, revision = (str(folder), "", "") if folder else source.partition("@")
    try:
        checked = pin_revision(settings.with_weights(name, revision or None))
    except ModelLoadError as error:
        raise ReloadRefusedError(error.detail) from error
    version = version or (folder.name if folder else checked.revision)
    if version is not None and not version.isprintable():
        raise ReloadRefusedError(
            f"the version {version!r} cannot be printed, and is written to headers and "
            "logs; give another `version`"
        )
    return ModelCommand("stage", source=name, revision=checked.revision, version=version)


def load_scorer(settings: ModelSettings) -> RewardScorer:
    """Load a model and warm it up; each stage is logged."""
    started = time.perf_counter()
    logger.info("%s: loading", settings.alias)
    scorer = RewardScorer.load(settings.to_model_config(), settings.to_batch_config())
    loaded = time.perf_counter()
    logger.info("%s: loaded in %.1f s, warming up", settings.alias, loaded - started)
    scorer.warm_up()
    logger.info("%s: warmed up in %.1f s", settings.alias, time.perf_counter() - loaded)
    return scorer
