"""The scorer deployment: one model on one device. No HTTP, no queue: gateways send it batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch

from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.config.reconfigure import ReplicaUserConfig
from serve.deployments.autoscaling import QUEUED_TOKENS, Backlog
from serve.errors import ReplicaRejectedBatchError
from serve.telemetry.logging import LogFormat, configure_logging
from serve.worker.backends import load_scorer
from serve.worker.worker import Worker, WorkerResult

_REJECTION_DELAY_S = 1.0


class ScorerReplica:
    """An `Worker`, in a replica.

    Args:
        settings: `ModelSettings` as plain data.
        log_level: of this process.
        log_format: of this process.

    Raises:
        ModelLoadError: the checkpoint is refused; the replica never becomes ready.
    """

    def __init__(self, settings: dict[str, Any], log_level: str, log_format: LogFormat) -> None:
        configure_logging(log_level, log_format)
        self._settings = ModelSettings.model_validate(settings)
        self._log_level, self._log_format = log_level, log_format
        torch.set_num_threads(self._settings.cpu_threads or self._compute_cpu_threads())
        self._worker = Worker(load_scorer(self._settings), self._settings.stuck_after_s)
        self._backlog = Backlog()

    async def run_batch(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> WorkerResult:
        """Score one batch; the event loop stays free meanwhile.

        Args:
            sequences: token ids, none empty.
            backlog_tokens: what waits in the gateway behind this batch.
            gateway: which one that is.

        Raises:
            ReplicaUnhealthyError: nothing of it may be trusted; another replica can score it.
        """
        self._backlog.update(gateway, backlog_tokens)
        async with _delay_rejection():
            return await self._worker.run_batch(sequences)

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> AsyncIterator[WorkerResult | None]:
        """Score each alone, one after another: see `Worker.run_one_by_one`.

        Args:
            sequences: token ids, none empty.
            backlog_tokens: what waits in the gateway behind these.
            gateway: which one that is.

        Raises:
            ReplicaUnhealthyError: see `run_batch`.
        """
        self._backlog.update(gateway, backlog_tokens)
        async with _delay_rejection():
            async for answer in self._worker.run_one_by_one(sequences):
                yield answer

    async def describe(self) -> dict[str, Any]:
        """Effective settings; answered only once the model is loaded and warmed up."""
        return self._worker.describe()

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica for which this raises."""
        self._worker.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for `serve.deployments.autoscaling.QueuedTokensPolicy`."""
        return {QUEUED_TOKENS: float(self._backlog.sum_tokens())}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over `user_config` of a Serve config; what it leaves out is as it was at the start.

        Raises:
            ModelLoadError: an unknown name or a bad value.
        """
        changes = ReplicaUserConfig.from_user_config(user_config)
        configure_logging(changes.log_level or self._log_level, self._log_format)
        self._worker.watchdog.stuck_after_s = changes.stuck_after_s or self._settings.stuck_after_s

    def _compute_cpu_threads(self) -> int:
        copies = self._settings.max_replicas or self._settings.num_replicas
        return max(1, (os.cpu_count() or 1) // copies)


@asynccontextmanager
async def _delay_rejection() -> AsyncIterator[None]:
    """A replica that refuses at once would have the least to do, and get everything."""
    try:
        yield
    except ReplicaRejectedBatchError:
        await asyncio.sleep(_REJECTION_DELAY_S)
        raise
