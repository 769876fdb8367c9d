"""How the gateway reaches a model: in this process, or in a Ray Serve deployment.

Both answer the same two questions and raise only errors of `rm_core.errors`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from rm_core import NotReadyError, RewardScorer, ScoredBatch, open_checkpoint
from rm_core.packing import TokenIds
from serve.engine import Engine, EngineAnswer
from serve.model_settings import ModelSettings

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """Where the rewards of one model come from."""

    async def score(self, sequences: Sequence[TokenIds]) -> ScoredBatch:
        """Reward i belongs to sequence i.

        Raises:
            RewardError: nothing of the batch could be scored.
        """
        ...

    async def describe(self) -> dict[str, Any]:
        """Effective settings of the loaded model; waits until it is loaded and warmed up.

        Raises:
            RewardError: it will not become ready, or not now.
        """
        ...


class LocalBackend:
    """A model in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def score(self, sequences: Sequence[TokenIds]) -> ScoredBatch:
        """See `Backend`."""
        return (await self._engine.run(sequences)).batch

    async def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        return self._engine.describe()


class RayBackend:
    """A model in a Serve deployment, called through its handle.

    Args:
        alias: name of the model, for messages.
        handle: of the scorer deployment. Calls go by value: the gateway keeps them small, and that
            costs half as much as going through the object store.
    """

    def __init__(self, alias: str, handle: Any) -> None:
        self._alias = alias
        self._handle = handle.options(_by_reference=False)
        self._name = uuid.uuid4().hex

    async def score(self, sequences: Sequence[TokenIds]) -> ScoredBatch:
        """See `Backend`."""
        answer: EngineAnswer = await self._call(
            self._handle.score_batch, list(sequences), 0, self._name
        )
        return answer.batch

    async def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        answer: dict[str, Any] = await self._call(self._handle.describe)
        return answer

    async def _call(self, method: Any, *args: Any) -> Any:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        try:
            return await method.remote(*args)
        except (RayActorError, DeploymentUnavailableError) as error:
            raise NotReadyError(
                f"model {self._alias!r} lost its replica or is being replaced; try again"
            ) from error
        except BackPressureError as error:
            raise NotReadyError(f"model {self._alias!r} is at its limit; try again") from error


def pin_revision(settings: ModelSettings) -> ModelSettings:
    """The settings with the commit of a hub checkpoint as their revision; others as they are.

    Raises:
        ModelLoadError: the hub checkpoint, or its revision, cannot be found.
    """
    if not settings.on_hub:
        return settings
    commit = open_checkpoint(settings.model_loading(), weights=False).revision
    return settings.model_copy(update={"revision": commit})


def load_scorer(settings: ModelSettings) -> RewardScorer:
    """Load a model and warm it up, telling the log of each stage.

    Raises:
        ModelLoadError: it cannot be loaded, or would score wrongly.
        ScoringError: it cannot score the warm-up conversation.
    """
    started = time.perf_counter()
    logger.info("%s: loading", settings.alias)
    scorer = RewardScorer.load(settings.model_loading(), settings.batching())
    loaded = time.perf_counter()
    logger.info("%s: loaded in %.1f s, warming up", settings.alias, loaded - started)
    scorer.warm_up()
    logger.info("%s: warmed up in %.1f s", settings.alias, time.perf_counter() - loaded)
    return scorer
