"""One scorer in an actor of its own; becomes a Ray actor in `serve.jobs.executors.ray_executor`.

Knows nothing of Ray, and of the job only what it is sent.
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
    """All that an actor needs to know, by value.

    Attributes:
        model: the checkpoint, with a device that every actor of the pool has.
        version: of this package, where the job runs.
        num_threads: of torch; None for its own choice.
    """

    model: ModelConfig
    version: str
    num_threads: int | None


class ScorerActor:
    """A `RewardScorer` that tokenizes the next call while one is on the device.

    Made at once and loaded by a call, so that what goes wrong then arrives as it was raised.

    Attributes:
        stuck_after_s: see `BatchWatchdog`.
    """

    stuck_after_s: ClassVar[float | None] = None

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        self._scorer: RewardScorer | None = None
        self._clock: BatchWatchdog | None = None
        self._encoding = threading.Lock()
        self._device = threading.Lock()

    def load(self) -> dict[str, Any]:
        """Load the model and warm it up.

        Returns:
            Its fingerprint, as plain data.

        Raises:
            ModelLoadError: it cannot be loaded here, or this machine has another version of us.
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
        clock = BatchWatchdog(
            is_compiled=scorer.loaded_model.compiled, stuck_after_s=self.stuck_after_s
        )
        started = time.perf_counter()
        clock.observe(scorer.probe().num_tokens, time.perf_counter() - started)
        self._scorer, self._clock = scorer, clock
        return scorer.fingerprint.as_dict()

    def run_batch(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> ScoreBatchResult:
        """Score conversations, in order.

        Raises:
            DeviceFailedError: this process will not score again.
        """
        assert self._scorer is not None, "loaded before anything is scored"
        assert self._clock is not None
        with self._encoding:
            encoded = self._scorer.encoder.encode_all(conversations, truncation)
            ids = [item.input_ids for item in encoded if isinstance(item, Encoded)]
            packing = self._scorer.pack(ids)
        with self._device:
            try:
                batch = self._scorer.score_packing(packing, self._clock.begin)
                self._clock.finish()
            finally:
                self._clock.stop()
        return ScoreBatchResult(merge_results(encoded, batch), batch.num_computed_tokens)

    def stall_reason(self) -> str | None:
        """Why it will not answer, as far as it can tell itself; None while all is well."""
        return self._clock.stall_reason() if self._clock else None


def find_incompatibility(first: Fingerprint, other: Fingerprint) -> str | None:
    """Why two actors may not score one job; None if they may.

    Attention may differ, with the kind of GPU: rewards then differ by what rounding makes of it.
    """
    for field in ("revision", "template_sha256", "dtype", "template_date"):
        here, there = getattr(first, field), getattr(other, field)
        if here != there:
            return (
                f"actors of one job have to score alike, and the {field} is {there} here, {here} "
                "on another node; every node needs the same checkpoint"
            )
    return None
