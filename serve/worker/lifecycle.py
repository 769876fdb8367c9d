"""Puts the model of a worker to sleep, wakes it, and gives it new weights between two batches.

Batches that come meanwhile wait, or are sent to another replica. Weights are replaced in two steps,
so that all replicas of a model can agree: `stage` loads and checks them while the old ones serve,
`switch` puts them to use. On a device with too little room for both, the old weights wait in the
host's memory while the new ones are loaded, and come back if these are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from rm_core import ModelInfo, ModelLoadError, RewardScorer
from rm_core.model.offload import free_unused_memory, measure_used_memory
from serve.config.model_settings import ModelSettings
from serve.errors import ReloadRefusedError
from serve.worker.backends import load_scorer
from serve.worker.commands import ModelCommand
from serve.worker.worker import Worker

logger = logging.getLogger(__name__)

# Fields of transformers' configurations that determine the shapes of weights and caches.
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
# Share of the weights' size that loading takes besides them.
_ROOM = 1.1
_WAY_OUT = (
    "the model sleeps on, since it was put to sleep at level 2: put the files of its weights back "
    "and wake it again, or start the service again with other weights"
)


class ManagedWorker(Worker):
    """A worker whose model can sleep and get new weights; the `Backend` of one process."""

    def __init__(
        self, settings: ModelSettings, load: Callable[[ModelSettings], RewardScorer] = load_scorer
    ) -> None:
        super().__init__(load(settings), settings.stuck_after_s)
        self.sleep_level = 0
        self.freed_bytes: int | None = None
        self._settings = settings
        self._load = load
        self._staged: tuple[ModelSettings, RewardScorer] | None = None
        # Keeps batches from the device while weights are replaced in place.
        self._held: contextlib.AsyncExitStack | None = None
        self._commands = asyncio.Lock()

    async def control(self, command: ModelCommand) -> ModelInfo:
        """Do what a command says; return the settings of the model that is staged or in use.

        Raises:
            ReloadRefusedError: the new weights cannot be used; the old ones serve on.
            ModelLoadError: weights that were dropped cannot be loaded again; the model sleeps on.
            ModelError: the device has too little memory to wake; the model sleeps on.
        """
        async with self._commands:
            match command.action:
                case "sleep":
                    await self._sleep(command.level)
                case "wake":
                    await self._wake()
                case "stage":
                    return await self._stage(command)
                case "switch":
                    await self._switch()
                case "discard":
                    await self._discard()
            return self.info

    async def _sleep(self, level: int) -> None:
        await self._discard()
        if level <= self.sleep_level:
            return
        async with self.hold():
            scorer = self.scorer
            assert scorer is not None, "a model sleeps at level 2 at most"
            devices = scorer.loaded_model.devices
            used_before = measure_used_memory(devices)
            if level == 1:
                await self.run_on_device(scorer.sleep)
            else:
                self.put_down()
                del scorer
                await self.run_on_device(free_unused_memory)
            self.is_asleep = True
            used_after = measure_used_memory(devices)
        if used_before is not None and used_after is not None:
            self.freed_bytes = max(0, used_before - used_after)
        self.sleep_level = level
        logger.info("%s: asleep, level %d", self._settings.alias, level)

    async def _wake(self) -> None:
        if not self.sleep_level:
            return
        async with self.hold():
            scorer = self.scorer
            if scorer is None:
                expected = self.info.fingerprint
                try:
                    scorer = await asyncio.to_thread(self._load, self._settings)
                except ModelLoadError as error:
                    raise ModelLoadError(f"{error.detail}; {_WAY_OUT}") from error
                if scorer.fingerprint != expected:
                    raise ModelLoadError(
                        f"the checkpoint of {self._settings.alias} has changed while the model was "
                        f"asleep; {_WAY_OUT}"
                    )
                await self.replace_scorer(scorer)
            else:
                await self.run_on_device(scorer.wake)
            self.is_asleep = False
        self.sleep_level = 0
        logger.info("%s: awake", self._settings.alias)

    async def _stage(self, command: ModelCommand) -> ModelInfo:
        await self._discard()
        current = self.scorer
        if self.sleep_level or current is None:
            raise ReloadRefusedError("the model is asleep; wake it before its weights are replaced")
        settings = self._settings.with_weights(command.source, command.revision, command.version)
        # The memory of the old prefix cache goes to the new scorer at the switch.
        max_batch_tokens = current.describe().max_batch_tokens
        sizes = {"prefix_cache_bytes": 0, "max_batch_tokens": max_batch_tokens}
        if not _has_room(current):
            self._held = contextlib.AsyncExitStack()
            await self._held.enter_async_context(self.hold())
            await self.run_on_device(current.sleep)
        try:
            scorer = await asyncio.to_thread(self._load, settings.model_copy(update=sizes))
            _check_compatible(current, scorer)
        except BaseException as error:
            await self._discard()
            if isinstance(error, ModelLoadError):
                raise ReloadRefusedError(error.detail) from error
            raise
        self._staged = settings, scorer
        return scorer.describe()

    async def _switch(self) -> None:
        if self._staged is None:
            raise ReloadRefusedError("no weights are staged; send the reload again")
        settings, scorer = self._staged
        held, self._held = self._held, None
        async with held or contextlib.AsyncExitStack() as stack:
            if held is None:
                await stack.enter_async_context(self.hold())
            assert self.scorer is not None
            await self.run_on_device(partial(scorer.take_over, self.scorer))
            await self.replace_scorer(scorer)
        self._settings, self._staged = settings, None
        await self.run_on_device(free_unused_memory)
        logger.info("%s: its weights are version %s now", settings.alias, settings.version)

    async def _discard(self) -> None:
        if self._staged is not None:
            self._staged = None
            await self.run_on_device(free_unused_memory)
        held, self._held = self._held, None
        if held is not None:
            async with held:
                assert self.scorer is not None
                await self.run_on_device(self.scorer.wake)


def _has_room(scorer: RewardScorer) -> bool:
    """Return whether other weights fit besides those of a scorer on each of its devices."""
    needed: Counter[torch.device] = Counter()
    for parameter in scorer.loaded_model.model.parameters():
        needed[parameter.device] += parameter.numel() * parameter.element_size()
    return all(
        torch.cuda.mem_get_info(device)[0] >= _ROOM * num_bytes
        for device, num_bytes in needed.items()
        if device.type == "cuda"
    )


def _check_compatible(old: RewardScorer, new: RewardScorer) -> None:
    """Refuse weights with which conversations would be read in another way than before."""
    before, after = old.describe(), new.describe()
    names = ("kind", "step_format", "family", "head", "encoding_sha256", "max_length", "dtype")
    for name in names:
        if getattr(before, name) != getattr(after, name):
            raise ModelLoadError(
                f"{name} of the new weights is {getattr(after, name)!s:.80}, and that of the model "
                f"is {getattr(before, name)!s:.80}; a reload keeps all but the weights: start "
                "another model with these"
            )
    # The caches have the sizes of the old weights.
    sizes, new_sizes = old.loaded_model.model.config, new.loaded_model.model.config
    for name in _SIZES:
        before_size, after_size = getattr(sizes, name, None), getattr(new_sizes, name, None)
        if before_size != after_size:
            raise ModelLoadError(
                f"{name} of the new weights is {after_size}, and that of the model is "
                f"{before_size}; a reload keeps all but the weights: start another model with these"
            )
