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
from serve.config.reconfigure import ScorerChanges
from serve.deployments.autoscaling import QUEUED_TOKENS, Backlog
from serve.errors import ReplicaRefusedError
from serve.telemetry.logging import LogFormat, configure_logging
from serve.worker.backends import load_scorer
from serve.worker.worker import Engine, EngineAnswer

_REFUSE_AFTER_S = 1.0


class Scorer:
    """An `Engine`, in a replica.

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
        torch.set_num_threads(self._settings.cpu_threads or self._fair_share())
        self._engine = Engine(load_scorer(self._settings), self._settings.stuck_after_s)
        self._backlog = Backlog()

    async def score_batch(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> EngineAnswer:
        """Score one batch; the event loop stays free meanwhile.

        Args:
            sequences: token ids, none empty.
            backlog_tokens: what waits in the gateway behind this batch.
            gateway: which one that is.

        Raises:
            ReplicaUnhealthyError: nothing of it may be trusted; another replica can score it.
        """
        self._backlog.note(gateway, backlog_tokens)
        async with _not_looking_idle():
            return await self._engine.run(sequences)

    async def score_each(
        self, sequences: Sequence[TokenIds], backlog_tokens: int, gateway: str
    ) -> AsyncIterator[EngineAnswer | None]:
        """Score each alone, one after another: see `Engine.run_each`.

        Args:
            sequences: token ids, none empty.
            backlog_tokens: what waits in the gateway behind these.
            gateway: which one that is.

        Raises:
            ReplicaUnhealthyError: see `score_batch`.
        """
        self._backlog.note(gateway, backlog_tokens)
        async with _not_looking_idle():
            async for answer in self._engine.run_each(sequences):
                yield answer

    async def describe(self) -> dict[str, Any]:
        """Effective settings; answered only once the model is loaded and warmed up."""
        return self._engine.describe()

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica for which this raises."""
        self._engine.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for `serve.deployments.autoscaling.QueuedTokens`."""
        return {QUEUED_TOKENS: float(self._backlog.total())}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over `user_config` of a Serve config; what it leaves out is as it was at the start.

        Raises:
            ModelLoadError: an unknown name or a bad value.
        """
        changes = ScorerChanges.of(user_config)
        configure_logging(changes.log_level or self._log_level, self._log_format)
        self._engine.clock.stuck_after_s = changes.stuck_after_s or self._settings.stuck_after_s

    def _fair_share(self) -> int:
        copies = self._settings.max_replicas or self._settings.num_replicas
        return max(1, (os.cpu_count() or 1) // copies)


@asynccontextmanager
async def _not_looking_idle() -> AsyncIterator[None]:
    """A replica that refuses at once would have the least to do, and get everything."""
    try:
        yield
    except ReplicaRefusedError:
        await asyncio.sleep(_REFUSE_AFTER_S)
        raise
