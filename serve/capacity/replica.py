"""A load, and the memory and rate of one replica under it. Pure functions.

The memory follows the rule by which `rm_core.memory` sets the token budget after loading a model;
`make gpu-check` compares its estimate with a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.memory import estimate_bytes_per_token, fit_budget
from serve.capacity.devices import (
    MATRIX_EFFICIENCY,
    Device,
    Efficiency,
    Status,
    estimate_efficiency,
)
from serve.capacity.shape import ModelShape
from serve.errors import PlanError

# CUDA context, cuBLAS workspaces and code of kernels. Inferred, not measured.
RUNTIME_BYTES = 3 * 2**28
# A shorter packed row cannot keep a device busy.
_MIN_TOKENS = 1_024
_MAX_DEVICES = 8


@dataclass(frozen=True, slots=True)
class Load:
    """A load of requests, each with one group: a prompt with several responses.

    Raises:
        PlanError: `cached_share` or `conversations_per_s` is out of range.
    """

    conversations_per_s: float  # mean rate
    prompt_tokens: int  # tokens of the prompt, which the conversations of a group share
    response_tokens: int  # tokens of each response
    group_size: int  # conversations of a request
    # Share of the conversations that the score cache answers, from 0 to 1.
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cached_share < 1:
            raise PlanError(
                f"cached_share is {self.cached_share:g}; it must be at least 0 and less than 1"
            )
        if self.conversations_per_s <= 0:
            raise PlanError("a plan needs a load above 0 conversations/s")

    @property
    def group_tokens(self) -> int:
        """Distinct tokens of a request, with the prompt counted once."""
        return self.prompt_tokens + self.group_size * self.response_tokens

    @property
    def conversation_tokens(self) -> int:
        """Tokens of one conversation, including the shared prompt."""
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one device of a replica."""

    device_bytes: int  # total memory of the device; 0 for a CPU
    weights_bytes: int  # weights on the fullest device
    runtime_bytes: int  # memory of the CUDA runtime
    activation_bytes: int  # activations of the largest batch
    max_batch_tokens: int  # maximum number of tokens in a batch
    reason: str  # reason for `max_batch_tokens`

    @property
    def peak_bytes(self) -> int:
        """Memory in use while the largest batch runs."""
        return self.weights_bytes + self.runtime_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate of one replica with full batches, in distinct tokens per second."""

    tokens_per_s: float  # rate that plans use
    low: float  # lowest likely rate
    high: float  # highest likely rate
    status: Status  # origin of the rate
    note: str  # description of the rate

    def conversations_per_s(self, load: Load) -> float:
        """Return the conversations per second of a replica without idle time and cache hits."""
        return self.tokens_per_s * load.group_size / load.group_tokens


def estimate_memory(
    shape: ModelShape, device: Device, dtype: torch.dtype, num_devices: int = 1
) -> Memory:
    """Estimate the memory of a replica on each device, or say how many devices are enough."""
    memory = _try_estimate_memory(shape, device, dtype, num_devices)
    if memory is not None:
        return memory
    for number in range(num_devices + 1, _MAX_DEVICES + 1):
        if _try_estimate_memory(shape, device, dtype, number) is not None:
            raise PlanError(
                f"{shape.name} does not fit on {num_devices} x {device.name}; it fits on {number} "
                f"(--gpus-per-replica {number}), which run their layers one after another"
            )
    raise PlanError(f"{shape.name} does not fit on {_MAX_DEVICES} x {device.name}")


def _try_estimate_memory(
    shape: ModelShape, device: Device, dtype: torch.dtype, num_devices: int
) -> Memory | None:
    weights_bytes = shape.weight_bytes(dtype.itemsize, num_devices)
    free_bytes = device.memory_bytes - weights_bytes - RUNTIME_BYTES
    bytes_per_token = estimate_bytes_per_token(shape, dtype)
    if free_bytes < bytes_per_token * _MIN_TOKENS:
        return None
    budget = fit_budget(free_bytes, shape, dtype)
    return Memory(
        device_bytes=device.memory_bytes,
        weights_bytes=weights_bytes,
        runtime_bytes=RUNTIME_BYTES,
        activation_bytes=budget.max_batch_tokens * bytes_per_token,
        max_batch_tokens=budget.max_batch_tokens,
        reason=budget.reason,
    )


def estimate_rate(
    shape: ModelShape,
    device: Device,
    load: Load,
    matrix_flops: float | None = None,
    efficiency: float | None = None,
) -> Rate:
    """Estimate the rate of a replica as a share of the data sheet's rate.

    Several stages run one after another, at the rate of one. The matrix rate of the device in
    FLOP/s and the engine's share of it may have been measured.
    """
    matrix = MATRIX_EFFICIENCY
    if matrix_flops is not None:
        measured = matrix_flops / device.peak_flops
        matrix = Efficiency(measured, measured, measured, "given", "the given matrix rate")
    engine = estimate_efficiency(shape.hidden_size)
    if efficiency is not None:
        engine = Efficiency(efficiency, efficiency, efficiency, "given", "the given MFU")
    flops = shape.count_group_flops(load.prompt_tokens, load.response_tokens, load.group_size)
    peak_tokens_per_s = device.peak_flops / (flops / load.group_tokens)
    is_given = matrix.status == engine.status == "given"
    return Rate(
        tokens_per_s=peak_tokens_per_s * matrix.value * engine.value,
        low=peak_tokens_per_s * matrix.low * engine.low,
        high=peak_tokens_per_s * matrix.high * engine.high,
        status="given" if is_given else "inferred",
        note=f"{matrix.value:.2f} ({matrix.note}) x {engine.value:.2f} ({engine.note}) of "
        f"{device.peak_flops / 1e12:,.0f} TFLOP/s",
    )
