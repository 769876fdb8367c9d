"""Brings the model of one replica on Ray to the state that all replicas are to have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rm_core import ModelError, ModelInfo, ModelLoadError, RewardError
from serve.config.model_settings import ModelSettings
from serve.worker.commands import ModelCommand, TargetState, Weights
from serve.worker.lifecycle import ManagedWorker

logger = logging.getLogger(__name__)


class Reconciler:
    """Loads the model of a replica, and moves it from state to state.

    A replica that starts while the model sleeps loads nothing until it is woken: the device may
    have no room.
    """

    def __init__(
        self, settings: ModelSettings, create: Callable[[ModelSettings], ManagedWorker]
    ) -> None:
        # None if the model slept when the replica started, and still does.
        self.worker: ManagedWorker | None = None
        self.staged_info: ModelInfo | None = None  # settings of the model that is staged
        self._settings, self._create = settings, create
        self._initial = Weights(settings.name, settings.revision, settings.version)
        self._reached = TargetState()
        self._has_failed = False

    def start(self, target: TargetState) -> TargetState:
        """Load the model; return the state that was reached, in which nothing is staged."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None
        if not target.sleep_level:
            self.worker = self._load(target)
        self._reached = replace(target, staged=None)
        return self._reached

    async def reach(self, target: TargetState) -> RewardError | None:
        """Bring the model to a state; return why that failed.

        A replica that can neither reach a state nor go back, or has not the weights of the others,
        becomes unhealthy, so that Serve replaces it.
        """
        try:
            await self._reach(target)
        # Boundary of the replica: whatever failed, the gateway gets the reason.
        except Exception as failure:
            logger.exception("%s: cannot follow a command", self._settings.alias)
            error = failure if isinstance(failure, RewardError) else None
            has_others_weights = self._get_weights(target) == self._get_weights(self._reached)
            if self.worker is not None and (self._has_failed or not has_others_weights):
                self.worker.mark_unhealthy(f"it cannot follow the other replicas: {failure}")
            self._has_failed = True
            return error or ModelError(f"{type(failure).__name__}: {failure}")
        self._has_failed = False
        return None

    async def _reach(self, target: TargetState) -> None:
        if self.worker is None:
            if not target.sleep_level:
                self.worker = await asyncio.to_thread(self._load, target)
            self._reached = replace(target, staged=None)
        weights = self._get_weights(target)
        if self._get_weights(self._reached) != weights:
            if self._reached.staged != weights:  # this replica started after it was staged
                await self._apply(ModelCommand("wake"), sleep_level=0)
                await self._stage(weights)
            await self._apply(ModelCommand("switch"), weights=target.weights, staged=None)
            if self.worker is not None:
                self._check_identity(self.worker, target)
        if target.staged is None:
            if self._reached.staged is not None:
                await self._apply(ModelCommand("discard"), staged=None)
        elif self._reached.staged != target.staged:
            await self._stage(target.staged)
        if target.sleep_level:
            command = ModelCommand("sleep", target.sleep_level)
            await self._apply(command, sleep_level=target.sleep_level)
        elif self._reached.sleep_level:
            await self._apply(ModelCommand("wake"), sleep_level=0)
        self._reached = target

    async def _stage(self, weights: Weights) -> None:
        command = ModelCommand(
            "stage", source=weights.source, revision=weights.revision, version=weights.version
        )
        self.staged_info = await self._apply(command, staged=weights)

    async def _apply(self, command: ModelCommand, **changes: Any) -> ModelInfo | None:
        """Do what a command says, if a model is loaded, and record what has changed."""
        info = None if self.worker is None else await self.worker.control(command)
        self._reached = replace(self._reached, **changes)
        return info

    def _get_weights(self, target: TargetState) -> Weights:
        return target.weights or self._initial

    def _load(self, target: TargetState) -> ManagedWorker:
        weights = self._get_weights(target)
        worker = self._create(
            self._settings.with_weights(weights.source, weights.revision, weights.version)
        )
        try:
            self._check_identity(worker, target)
        except ModelLoadError:
            worker.close()
            raise
        return worker

    def _check_identity(self, worker: ManagedWorker, target: TargetState) -> None:
        """Refuse files that are no longer those that the other replicas have read."""
        found = worker.info.revision
        if target.identity not in (None, found):
            raise ModelLoadError(
                f"the checkpoint {self._get_weights(target).source} has changed since it was "
                f"loaded: its revision is {found}, and that of the other replicas is "
                f"{target.identity}; put the old files back, or use `reload` with the new ones "
                "under another name"
            )
