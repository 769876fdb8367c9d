"""Moves weights to the host's memory and back, and says what becomes of memory that is freed.

On CUDA the weights go to pinned memory, from which they return at the speed of the bus. A model on
a CPU has its weights in the host's memory already, so they stay.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rm_core.model.placement import move_to_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Parameters of glibc's mallopt, with the variables by which users set them before the start:
# from which size on a block is mapped by itself, how much free memory at the end of a heap is
# kept, and how many heaps there are.
_MMAP_THRESHOLD = (-3, 2**30, "MALLOC_MMAP_THRESHOLD_")
_TRIM_THRESHOLD = (-1, 2**31 - 1, "MALLOC_TRIM_THRESHOLD_")
_ARENA_MAX = (-8, 1, "MALLOC_ARENA_MAX")
_TUNABLES = "GLIBC_TUNABLES"


def offload_weights(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Move a model to the host's memory, in place; do nothing on a CPU."""
    if devices[0].type != "cuda":
        return
    model.to("cpu")  # type: ignore[arg-type]
    for parameter in model.parameters():
        if type(parameter.data) is torch.Tensor:  # not one of a quantization library
            parameter.data = parameter.data.pin_memory()


def restore_weights(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Move a model back to its devices, in place."""
    if devices[0].type == "cuda":
        move_to_devices(model, devices)


def measure_used_memory(devices: Sequence[torch.device]) -> int | None:
    """Return the bytes that this process has of its devices, or on a CPU of the host's memory.

    None where the system does not say.
    """
    if devices[0].type == "cuda":
        return sum(torch.cuda.memory_reserved(device) for device in set(devices))
    try:
        num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return None
    return num_pages * resource.getpagesize()


def free_unused_memory() -> None:
    """Give freed memory back to the driver and to the operating system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc, which `keep_freed_memory` makes keep what is freed
        trim(0)


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 1 GiB in this process; do nothing without glibc.

    By default glibc gives large blocks back to the kernel as soon as they are free, so that each
    layer of each batch gets its tensors as new pages, which the kernel fills with zeros first. On
    two cores that took up to a tenth of the time of batches in float32. Threads that start later
    share the heaps that are there: another one would be mapped and unmapped in parts of 64 MiB.
    Values set by the user stay. Call this after the weights are loaded: what loading freed is then
    back with the kernel.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value, variable in (_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX):
        if variable not in os.environ and "glibc.malloc" not in os.environ.get(_TUNABLES, ""):
            mallopt(parameter, value)
