"""The scorer deployment: one model on one device. Gateways send batches; it has no queue."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
from ray import serve as ray_serve

from rm_core import BatchResult, ModelInfo
from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.config.reconfigure import ReplicaUserConfig
from serve.deployments.autoscaling import QUEUED_TOKENS
from serve.deployments.control_client import ControlClient
from serve.errors import ReplicaBusyError
from serve.telemetry.logging import LogFormat, configure_logging
from serve.worker.commands import TargetState
from serve.worker.lifecycle import ManagedWorker
from serve.worker.reconcile import Reconciler

_REJECTION_DELAY_S = 1.0
# A gateway reports with each batch, also what is queued behind its last one. A gateway that has not
# reported for so long is gone.
_REPORT_TTL_S = 60.0


class ScorerReplica:
    """A `ManagedWorker` in a replica of Ray Serve.

    `settings` are `ModelSettings` as plain data; `control` is the handle of `ModelControl`, or None
    if no commands come.

    Raises:
        ModelLoadError: the checkpoint is refused; the replica never becomes ready.
    """

    def __init__(
        self, settings: dict[str, Any], log_level: str, log_format: LogFormat, control: Any = None
    ) -> None:
        configure_logging(log_level, log_format)
        self._settings = ModelSettings.model_validate(settings)
        self._log_level, self._log_format = log_level, log_format
        torch.set_num_threads(self._settings.cpu_threads or self._compute_cpu_threads())
        # Replicas get token ids, so that loading a second tokenizer would take time for nothing.
        scorer_settings = self._settings.model_copy(update={"tokenizer_mode": "tokenizers"})
        self._stuck_after_s = self._settings.stuck_after_s
        self._reconciler = Reconciler(scorer_settings, self._create_worker)
        self._backlog = Backlog()
        replica = ray_serve.get_replica_context().replica_id
        self._id: str = replica.unique_id
        self._control: ControlClient | None = None
        if control is None:
            self._reconciler.start(TargetState())
        else:
            self._control = ControlClient(
                control, self._settings, replica.to_full_id_str(), self._reconciler
            )
            self._control.start()

    @property
    def _worker(self) -> ManagedWorker:
        if self._reconciler.worker is None:
            raise ReplicaBusyError("the model is asleep, and this replica has not loaded it")
        return self._reconciler.worker

    def _create_worker(self, settings: ModelSettings) -> ManagedWorker:
        worker = ManagedWorker(settings)
        worker.watchdog.stuck_after_s = self._stuck_after_s
        return worker

    async def run_batch(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> BatchResult:
        """Score one batch without blocking the event loop."""
        self._backlog.update(gateway, backlog_tokens)
        async with _delay_rejection():
            result = await self._worker.run_batch(sequences)
        return replace(result, replica=self._id)

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> AsyncIterator[BatchResult | None]:
        """Score sequences one after another; see `Worker.run_one_by_one` and `run_batch`."""
        self._backlog.update(gateway, backlog_tokens)
        async with _delay_rejection():
            async for result in self._worker.run_one_by_one(sequences):
                yield result

    async def describe(self) -> ModelInfo:
        """Return the effective settings; Serve calls this only after the model is warmed up."""
        return await self._worker.describe()

    def check_health(self) -> None:
        """Return if the worker is healthy; called by Serve, which else replaces the replica."""
        if self._control is not None:
            self._control.check_health()
        if self._reconciler.worker is not None:
            self._reconciler.worker.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the queued tokens, which Serve passes to `QueuedTokensPolicy`."""
        return {QUEUED_TOKENS: float(self._backlog.sum_tokens())}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply `user_config` of a Serve config; omitted settings have the values of the start."""
        changes = ReplicaUserConfig.from_user_config(user_config)
        configure_logging(changes.log_level or self._log_level, self._log_format)
        self._stuck_after_s = changes.stuck_after_s or self._settings.stuck_after_s
        if self._reconciler.worker is not None:
            self._reconciler.worker.watchdog.stuck_after_s = self._stuck_after_s

    def _compute_cpu_threads(self) -> int:
        num_replicas = self._settings.max_replicas or self._settings.num_replicas
        return max(1, (os.cpu_count() or 1) // num_replicas)


@asynccontextmanager
async def _delay_rejection() -> AsyncIterator[None]:
    """Delay rejections: a replica that rejects at once looks least loaded and gets all batches."""
    try:
        yield
    except ReplicaBusyError:
        await asyncio.sleep(_REJECTION_DELAY_S)
        raise


class Backlog:
    """Last report of each gateway on its queued tokens."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, int]] = {}

    def update(self, gateway: str, num_tokens: int, now: float | None = None) -> None:
        """Record the report of one gateway, now or at a time of `time.monotonic`."""
        self._reports[gateway] = (time.monotonic() if now is None else now, num_tokens)

    def sum_tokens(self, now: float | None = None) -> int:
        """Sum the queued tokens of all gateways that reported recently."""
        now = time.monotonic() if now is None else now
        self._reports = {
            name: (reported_at, num_tokens)
            for name, (reported_at, num_tokens) in self._reports.items()
            if now - reported_at <= _REPORT_TTL_S
        }
        return sum(num_tokens for _, num_tokens in self._reports.values())
