"""A GPU that computes nothing: batches take as long as `skyreward plan` says they would on it.

With it, the service in front of a device can be measured at the speed of a GPU on a CPU. The rows
of batches are those of the engine, with the real index of the prefix cache; rewards are all 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from rm_core import BatchResult, ModelInfo, load_encoder, pack
from rm_core.memory import CUDA_TOKENS
from rm_core.packing import TokenIds
from serve.capacity.devices import MATRIX_EFFICIENCY, Device, estimate_efficiency
from serve.capacity.replica import RUNTIME_BYTES, estimate_memory
from serve.capacity.shape import ModelShape
from serve.config.model_settings import ModelSettings

_DTYPE = torch.bfloat16
# The rule of `rm_core.memory`: a share of the memory that is left, and at most so many batches.
_CACHE_SHARE = 0.5
_CACHE_BATCHES = 64
# Without a model, a token takes so long, shared or not: about as much as on a GPU, so that as many
# requests share a batch.
_TOKEN_S = 1e-6


@dataclass(frozen=True, slots=True)
class Run:
    """What a batch is to a device: tokens that it computes, tokens that it has, and seconds."""

    num_computed_tokens: int
    num_cached_tokens: int
    seconds: float


class SimulatedDevice:
    """Says how long a GPU would take for batches, with what its prefix cache has of them.

    Args:
        shape: of the model.
        device: the GPU.
        count_prompt_tokens: how many first tokens of a sequence the cache keeps.
        efficiency: the engine's share of the matrix rate; None for that of a plan.
        cache_tokens: size of the prefix cache; None for that of the service on such a device.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: Device,
        count_prompt_tokens: Callable[[TokenIds], int],
        efficiency: float | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        # Not above: a source tree without a prefix cache can serve without this device.
        from rm_core.memory import compute_key_value_bytes
        from rm_core.prefix_cache import PrefixCache

        memory = estimate_memory(shape, device, _DTYPE)
        self.max_batch_tokens = memory.max_batch_tokens
        if cache_tokens is None:
            left = memory.device_bytes - memory.weights_bytes - RUNTIME_BYTES
            left -= memory.activation_bytes
            fitting = int(left * _CACHE_SHARE) // compute_key_value_bytes(shape, _DTYPE)
            cache_tokens = min(fitting, _CACHE_BATCHES * self.max_batch_tokens)
        self.cache_tokens = cache_tokens
        self._shape = shape
        self._count_prompt_tokens = count_prompt_tokens
        engine = estimate_efficiency(shape.hidden_size).value if efficiency is None else efficiency
        self._flops_per_s = device.peak_flops * MATRIX_EFFICIENCY.value * engine
        self._cache = None
        if cache_tokens:
            self._cache = PrefixCache(cache_tokens, 1, 1, torch.int8, [torch.device("cpu")])

    def run(self, sequences: Sequence[TokenIds]) -> Run:
        """Take a batch as the engine does."""
        count_cached = (lambda *_: 0) if self._cache is None else self._cache.count
        num_computed = num_cached = 0
        flops = 0.0
        for tree in pack(sequences, self.max_batch_tokens, count_cached).batches:
            row = tree
            if self._cache is not None:
                num_kept = [self._count_prompt_tokens(ids) for ids in tree.sequences]
                batch = self._cache.acquire(tree, num_kept)
                self._cache.commit(batch)
                row = batch.tree
            num_computed += row.num_tokens
            num_cached += row.num_cached_tokens
            flops += sum(
                self._count_flops(segment.depth + len(segment.token_ids))
                - self._count_flops(segment.depth)
                for segment in row.row_segments
            )
        return Run(num_computed, num_cached, flops / self._flops_per_s)

    def _count_flops(self, num_tokens: int) -> float:
        """Operations of a lone sequence, from its first token."""
        return self._shape.count_group_flops(0, num_tokens, 1)


@dataclass(slots=True)
class Usage:
    """What a backend has done so far.

    Attributes:
        conversations: distinct ones.
        tokens: of the conversations, shared or not.
        computed_tokens: tokens that the device would have computed.
        batches: how many.
        busy_s: seconds that the device would have been busy.
        own_cpu_s: CPU that the simulation took for itself, in the process of the service.
    """

    conversations: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    batches: int = 0
    busy_s: float = 0.0
    own_cpu_s: float = 0.0


class SimulatedBackend:
    """A backend of the service with one simulated device.

    Args:
        settings: of the model, whose tokenizer is used.
        device: makes the device from the encoder's `count_prompt_tokens`; None for one that takes
            a microsecond a token, which every source tree of the project can serve.
    """

    def __init__(
        self,
        settings: ModelSettings,
        device: Callable[[Callable[[TokenIds], int]], SimulatedDevice] | None = None,
    ) -> None:
        self.num_replicas = 1
        self.sleep_level = 0
        self.freed_bytes: int | None = None
        self.usage = Usage()
        encoder = load_encoder(settings.to_model_config())
        self._device = device(encoder.count_prompt_tokens) if device else None
        self._free_at = 0.0
        self._info = self._build_info(encoder.encoding_sha256, encoder.max_length)

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        """Answer when the device would be done with this batch, after those before it."""
        started = time.thread_time()
        num_tokens = sum(map(len, sequences))
        if self._device:
            run = self._device.run(sequences)
        else:
            run = Run(num_tokens, 0, num_tokens * _TOKEN_S)
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + run.seconds
        usage = self.usage
        usage.conversations += len(sequences)
        usage.tokens += num_tokens
        usage.computed_tokens += run.num_computed_tokens
        usage.batches += 1
        usage.busy_s += run.seconds
        usage.own_cpu_s += time.thread_time() - started
        await asyncio.sleep(self._free_at - now)
        rewards = (0.0,) * len(sequences)
        return BatchResult(rewards, run.num_computed_tokens, run.seconds, self._info.fingerprint)

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        """See `serve.worker.backends.Backend`."""
        yield None
        for sequence in sequences:
            yield await self.run_batch([sequence], backlog_tokens)

    async def describe(self) -> ModelInfo:
        """See `serve.worker.backends.Backend`."""
        return self._info

    @property
    def info(self) -> ModelInfo:
        """See `serve.worker.backends.Backend`."""
        return self._info

    async def control(self, command: object) -> ModelInfo:
        """A simulated model does not sleep and has no weights."""
        raise NotImplementedError

    async def refresh(self) -> None:
        """See `serve.worker.backends.Backend`."""

    def check_health(self) -> None:
        """See `serve.worker.worker.Worker`."""

    def _build_info(self, encoding_sha256: str, max_length: int) -> ModelInfo:
        device = self._device
        known: dict[str, Any] = {
            "catalogue_id": None,
            "kind": "classifier",
            "encoding_sha256": encoding_sha256,
            "template_depends_on_date": False,
            "template_date": None,
            "max_length": max_length,
            "max_batch_tokens": device.max_batch_tokens if device else CUDA_TOKENS,
            "prefix_cache_tokens": device.cache_tokens if device else _CACHE_BATCHES * CUDA_TOKENS,
            "prefix_cache_bytes": 0,
            "deterministic": False,
            "compiled": False,
            "self_check": False,
        }
        # Trees that are compared may describe a model by other fields.
        names = [field.name for field in fields(ModelInfo)]
        return ModelInfo(**{name: known.get(name, "simulated") for name in names})
