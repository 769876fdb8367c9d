"""A scorer replica's side of the control deployment: reports, and the targets that come back."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve as ray_serve
from ray.serve.schema import ApplicationStatus

from rm_core import NotReadyError, RewardError
from serve.config.model_settings import ModelSettings
from serve.worker.commands import ReplicaReport, TargetState
from serve.worker.reconcile import Reconciler

logger = logging.getLogger(__name__)

# A replica asks for its target again after so many seconds without a new one.
_POLL_S = 10.0
_CALL_TIMEOUT_S = 10.0
_RETRY_S = 0.5


class ControlClient:
    """Reports of one replica to `ModelControl`, and the targets that it returns."""

    def __init__(
        self, handle: Any, settings: ModelSettings, replica: str, reconciler: Reconciler
    ) -> None:
        self._handle, self._alias = handle, settings.alias
        self._base, self._replica = settings.weights_key, replica
        self._reconciler = reconciler
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load the model in the state of the other replicas, and follow commands from now on.

        Blocks the event loop; called in the constructor of the replica.
        """
        with ThreadPoolExecutor(1) as thread:  # Serve does not let an event loop's thread wait
            reached = None
            target = thread.submit(self._fetch_target, reached).result()
            while reached is None or not _has_same_model(reached, target):
                reached = self._reconciler.start(target)
                target = thread.submit(self._fetch_target, reached).result()
        loop = asyncio.get_running_loop()
        # In an empty context: the call belongs to no request, with which it could be cancelled.
        self._task = loop.create_task(self._follow(reached), context=contextvars.Context())

    def check_health(self) -> None:
        """Raise `NotReadyError` if commands are not followed and the replica has to be replaced."""
        if self._task is not None and self._task.done():
            raise NotReadyError("the replica follows no commands any more")

    def _fetch_target(self, reached: TargetState | None) -> TargetState:
        """Report, and return the target at once; wait while nobody answers."""
        while True:
            try:
                call = self._handle.exchange.remote(self._alias, self._build_report(reached), 0.0)
                target: TargetState | None = call.result(timeout_s=_CALL_TIMEOUT_S)
            # The deployment may start at this moment, or be lost: the next call finds it.
            except Exception as error:
                logger.warning("%s: no target yet: %r", self._alias, error)
                target = None
            if target is not None:
                return target
            if _is_being_deleted(self._handle.app_name):
                raise NotReadyError("the application is being deleted")
            time.sleep(_RETRY_S)

    async def _follow(self, reached: TargetState) -> None:
        report = self._build_report(reached)
        while True:
            try:
                call = self._handle.exchange.remote(self._alias, report, _POLL_S)
                target = await asyncio.wait_for(call, _POLL_S + _CALL_TIMEOUT_S)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                target = None
            except Exception as error:  # as above
                logger.warning("%s: no commands come: %r", self._alias, error)
                target = None
            if target is None:
                await asyncio.sleep(_RETRY_S)
            elif target != report.target:
                report = self._build_report(target, await self._reconciler.reach(target))

    def _build_report(
        self, target: TargetState | None, error: RewardError | None = None
    ) -> ReplicaReport:
        worker = self._reconciler.worker
        is_staged = target is not None and target.staged is not None and error is None
        return ReplicaReport(
            self._replica,
            self._base,
            target,
            error,
            None if worker is None else worker.info,
            self._reconciler.staged_info if is_staged else None,
        )


def _is_being_deleted(app_name: str) -> bool:
    application = ray_serve.status().applications.get(app_name)
    return application is None or application.status == ApplicationStatus.DELETING


def _has_same_model(one: TargetState, other: TargetState) -> bool:
    """Return whether two states differ in nothing that is loaded when a replica starts."""
    return (one.weights, one.sleep_level) == (other.weights, other.sleep_level)
