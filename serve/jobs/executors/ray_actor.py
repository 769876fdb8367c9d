"""A scorer that `serve.jobs.executors.ray_executor` runs as a Ray actor.

This module does not depend on Ray; an actor knows of the job only what it receives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from rm_core import (
    Encoded,
    Fingerprint,
    ModelConfig,
    ModelLoadError,
    RewardScorer,
    Truncation,
    merge_results,
)
from rm_core.inputs.conversations import ChatJson
from serve import __version__
from serve.jobs.executors.base import ScoreBatchResult
from serve.worker.watchdog import BatchWatchdog


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """Settings of an actor, sent by value.

    Attributes:
        model: configuration of the model, with a device that every actor of the pool has.
        version: version of this package on the machine that runs the job.
        num_threads: number of torch threads; None for torch's default.
    """

    model: ModelConfig
    version: str
    num_threads: int | None


class ScorerActor:
    """A `RewardScorer` that tokenizes the next call while one is on the device.

    The model is loaded by a call and not by the constructor, so that the caller receives exceptions
    of loading as they were raised.

    Attributes:
        stuck_after_s: see `BatchWatchdog`.
    """

    stuck_after_s: ClassVar[float | None] = None

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        self._scorer: RewardScorer | None = None
        self._watchdog: BatchWatchdog | None = None
        self._encoding = threading.Lock()
        self._device = threading.Lock()

    def load(self) -> dict[str, Any]:
        """Load the model and warm it up.

        Returns:
            The model's fingerprint as JSON data.

        Raises:
            ModelLoadError: the model cannot be loaded on this node, or the node has another version
                of this package.
        """
        if self._settings.version != __version__:
            raise ModelLoadError(
                f"this node has skyreward {__version__}, the job runs {self._settings.version}; "
                "install the same version on every node"
            )
        if self._settings.num_threads:
            torch.set_num_threads(self._settings.num_threads)
        scorer = RewardScorer.load(self._settings.model)
        scorer.warm_up()
        watchdog = BatchWatchdog(
            is_compiled=scorer.loaded_model.compiled, stuck_after_s=self.stuck_after_s
        )
        started = time.perf_counter()
        watchdog.observe(scorer.probe().num_tokens, time.perf_counter() - started)
        self._scorer, self._watchdog = scorer, watchdog
        return scorer.fingerprint.as_dict()

    def run_batch(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> ScoreBatchResult:
        """Score conversations, in order.

        Raises:
            DeviceFailedError: the device failed; this process cannot score again.
        """
        assert self._scorer is not None, "load() must be called before run_batch()"
        assert self._watchdog is not None
        with self._encoding:
            encoded = self._scorer.encoder.encode_all(conversations, truncation)
            ids = [item.input_ids for item in encoded if isinstance(item, Encoded)]
            packing = self._scorer.pack(ids)
        with self._device:
            try:
                batch = self._scorer.score_packing(packing, self._watchdog.begin)
                self._watchdog.finish()
            finally:
                self._watchdog.stop()
        return ScoreBatchResult(merge_results(encoded, batch.rewards), batch.num_computed_tokens)

    def stall_reason(self) -> str | None:
        """Return why the running batch is considered stuck, or None."""
        return self._watchdog.stall_reason() if self._watchdog else None


def find_incompatibility(first: Fingerprint, other: Fingerprint) -> str | None:
    """Return why two actors may not score the same job, or None if they may.

    The attention backend may differ between kinds of GPU: rewards then differ by rounding.
    """
    for field in ("revision", "template_sha256", "dtype", "template_date"):
        expected, actual = getattr(first, field), getattr(other, field)
        if expected != actual:
            return (
                f"actors of a job must agree, and the {field} is {actual} on this node and "
                f"{expected} on another one; use the same checkpoint on every node"
            )
    return None
