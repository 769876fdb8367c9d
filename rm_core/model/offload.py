"""Moves a model's weights to the host's memory and back, so that others may use the device.

On CUDA the weights go to pinned memory, from which they return at the speed of the bus. A model on
a CPU has its weights in the host's memory already, so they stay.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rm_core.model.pipeline_parallel import move_to_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
