"""The scorer deployment: one model on one device, with the queue before it. No HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from rm_core import ScoredBatch
from rm_core.packing import TokenIds
from serve.backends import LocalBackend, load_scorer
from serve.model_settings import ModelSettings
from serve.telemetry import LogFormat, configure_logging


class Scorer:
    """Owns a model, its queue and the single thread that may use it: `LocalBackend`, in a replica.

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
        torch.set_num_threads(self._settings.cpu_threads or self._fair_share())
        self._backend = LocalBackend(load_scorer(self._settings))

    async def score(self, sequences: Sequence[TokenIds]) -> ScoredBatch:
        """Reward i belongs to sequence i; the event loop stays free meanwhile."""
        return await self._backend.score(sequences)

    async def describe(self) -> dict[str, Any]:
        """Effective settings; answered only once the model is loaded and warmed up."""
        return await self._backend.describe()

    def _fair_share(self) -> int:
        return max(1, (os.cpu_count() or 1) // self._settings.num_replicas)
