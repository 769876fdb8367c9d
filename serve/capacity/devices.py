"""The GPUs that a plan supports, and the share of their peak rate that the engine reaches.

Peak rates are those of the vendors' data sheets. The engine's share on GPUs is inferred from
measurements on CPUs, so plans give a range. `make gpu-check` and `skyreward plan --measure` measure
the local device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["measured", "inferred", "data sheet", "given"]

_GIB = 2**30
_TERA = 1e12


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU."""

    name: str  # display name
    memory_bytes: int  # memory that CUDA reports, which is less than that of the data sheet
    peak_flops: float  # FLOP/s of dense bfloat16 matrix products, from the data sheet


def _device(name: str, gib: float, teraflops: float) -> Device:
    return Device(name, int(gib * _GIB), teraflops * _TERA)


DEVICES: Mapping[str, Device] = {
    "b200": _device("NVIDIA B200", 178.0, 2_250),
    "h200": _device("NVIDIA H200 SXM", 139.8, 989.4),
    "h100": _device("NVIDIA H100 SXM 80 GB", 79.1, 989.4),
    "h100-pcie": _device("NVIDIA H100 PCIe 80 GB", 79.1, 756),
    "a100-80gb": _device("NVIDIA A100 80 GB", 79.1, 312),
    "a100-40gb": _device("NVIDIA A100 40 GB", 39.4, 312),
    "l40s": _device("NVIDIA L40S", 44.4, 362),
    "a10g": _device("NVIDIA A10G", 22.1, 70),
    "l4": _device("NVIDIA L4", 22.0, 121),
    "rtx-4090": _device("NVIDIA GeForce RTX 4090", 23.5, 165.2),
}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A share of a peak rate, with its uncertainty."""

    value: float  # value that plans use
    low: float  # lowest likely value
    high: float  # highest likely value
    status: Status  # origin of the value
    note: str  # description of the value


# Large products on hot GPUs stay below the data sheet's rate because of power and clock limits.
MATRIX_EFFICIENCY = Efficiency(
    0.70, 0.55, 0.80, "inferred", "large bfloat16 products against the data sheet's rate"
)
# The engine's share of the device's matrix rate, on distinct tokens. Measured on two CPU cores:
# 0.67 to 0.82 in process, 0.70 to 0.82 over HTTP, 0.47 for groups of 16 over HTTP. On a GPU, kernel
# launches take a larger share of the time the smaller the products are.
_EFFICIENCY_BY_HIDDEN_SIZE = (
    (4_096, Efficiency(0.65, 0.50, 0.80, "inferred", "hidden size of 4,096 and more")),
    (2_048, Efficiency(0.55, 0.35, 0.75, "inferred", "hidden size of 2,048 and more")),
    (0, Efficiency(0.40, 0.20, 0.65, "inferred", "hidden size below 2,048")),
)


def estimate_efficiency(hidden_size: int) -> Efficiency:
    """Return the share of the device's matrix rate that the engine reaches with full batches."""
    return next(
        efficiency
        for min_hidden_size, efficiency in _EFFICIENCY_BY_HIDDEN_SIZE
        if hidden_size >= min_hidden_size
    )
