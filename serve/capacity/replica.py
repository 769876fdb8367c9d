"""One copy of a model on its device: what it holds, and how fast it is. Pure.

Memory is what `rm_core.memory` allows itself when it has loaded such a model; `make gpu-check`
shows its estimate beside what was really taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.memory import estimate_bytes_per_token, fit_budget
from serve.capacity.devices import (
    LAUNCH_S_PER_LAYER,
    MATRIX_EFFICIENCY,
    Device,
    Efficiency,
    Status,
    estimate_efficiency,
)
from serve.capacity.load import Load
from serve.capacity.shape import ModelShape
from serve.errors import PlanError

# CUDA's context, cuBLAS' workspaces and the kernels' code. Inferred, not measured.
RUNTIME_BYTES = 3 * 2**28
# Below this a row is too short for a device to be busy.
_MIN_TOKENS = 1_024
_MAX_DEVICES = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device of a replica, in bytes.

    Attributes:
        device_bytes: all there is.
        weights_bytes: on the fullest device.
        runtime_bytes: of CUDA itself.
        activation_bytes: of the largest batch.
        max_batch_tokens: what the largest batch may have.
        reason: why.
    """

    device_bytes: int
    weights_bytes: int
    runtime_bytes: int
    activation_bytes: int
    max_batch_tokens: int
    reason: str

    @property
    def peak_bytes(self) -> int:
        """Taken while the largest batch runs."""
        return self.weights_bytes + self.runtime_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Rate:
    """Distinct tokens per second of one replica whose batches are full.

    Attributes:
        tokens_per_s: what is reckoned with.
        low: the least that is likely.
        high: the most that is likely.
        batch_floor_s: of a batch, however small.
        status: how it is known.
        note: where from.
    """

    tokens_per_s: float
    low: float
    high: float
    batch_floor_s: float
    status: Status
    note: str

    def conversations_per_s(self, load: Load) -> float:
        """Of one replica that is never idle; those that the cache answers not counted."""
        return self.tokens_per_s * load.group_size / load.group_tokens


def estimate_memory(
    shape: ModelShape, device: Device, dtype: torch.dtype, num_devices: int = 1
) -> Memory:
    """What a replica takes of each device.

    Raises:
        PlanError: it does not fit; with how many devices it would.
    """
    memory = _try_estimate_memory(shape, device, dtype, num_devices)
    if memory is not None:
        return memory
    for number in range(num_devices + 1, _MAX_DEVICES + 1):
        if _try_estimate_memory(shape, device, dtype, number) is not None:
            raise PlanError(
                f"{shape.name} does not fit {num_devices} x {device.name}; it fits {number} "
                f"(--gpus-per-replica {number}), whose layers work one after another"
            )
    raise PlanError(f"{shape.name} does not fit {_MAX_DEVICES} x {device.name}")


def _try_estimate_memory(
    shape: ModelShape, device: Device, dtype: torch.dtype, num_devices: int
) -> Memory | None:
    weights = shape.weight_bytes(dtype.itemsize, num_devices)
    free = device.memory_bytes - weights - RUNTIME_BYTES
    each = estimate_bytes_per_token(shape, dtype)
    if free < each * _MIN_TOKENS:
        return None
    budget = fit_budget(free, shape, dtype)
    return Memory(
        device_bytes=device.memory_bytes,
        weights_bytes=weights,
        runtime_bytes=RUNTIME_BYTES,
        activation_bytes=budget.max_batch_tokens * each,
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
    """From the data sheet and a share of it.

    Args:
        shape: of the model.
        device: of each stage; several work one after another, so they are as fast as one.
        load: its lengths.
        matrix_flops: measured rate of the device's matrix products, if known.
        share: of that, what the engine reached in a measurement, if known.
    """
    matrix = MATRIX_EFFICIENCY
    if matrix_flops is not None:
        measured = matrix_flops / device.peak_flops
        matrix = Efficiency(measured, measured, measured, "given", "the matrix rate that was given")
    engine = estimate_efficiency(shape.hidden_size)
    if efficiency is not None:
        engine = Efficiency(efficiency, efficiency, efficiency, "given", "the share that was given")
    operations = shape.count_group_flops(load.prompt_tokens, load.response_tokens, load.group_size)
    most = device.peak_flops / (operations / load.group_tokens)
    given = matrix.status == engine.status == "given"
    return Rate(
        tokens_per_s=most * matrix.value * engine.value,
        low=most * matrix.low * engine.low,
        high=most * matrix.high * engine.high,
        batch_floor_s=LAUNCH_S_PER_LAYER * shape.num_hidden_layers,
        status="given" if given else "inferred",
        note=f"{matrix.value:.2f} ({matrix.note}) x {engine.value:.2f} ({engine.note}) of "
        f"{device.peak_flops / 1e12:,.0f} TFLOP/s",
    )
