"""Where a model runs and as what: the settings `device` and `dtype`, resolved and checked."""

from __future__ import annotations

import torch

from rm_core.attention.select import Family
from rm_core.config import DType
from rm_core.errors import ModelLoadError


def resolve_device(name: str) -> torch.device:
    """The device that a setting means.

    Args:
        name: a torch device, or `auto` for the first CUDA device if there is one, else the CPU.

    Raises:
        ModelLoadError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"device {name!r} is unknown; use 'auto', 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device {name!r} is not supported; use 'auto', 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device; "
            "use 'auto' or 'cpu', or install torch for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "device(s), counted from 0"
        )
    return device


def resolve_devices(name: str, number: int) -> tuple[torch.device, ...]:
    """The devices that a model is spread over, its first layers on the first.

    Args:
        name: see `resolve_device`.
        number: how many.

    Raises:
        ModelLoadError: there are not as many.
    """
    first = resolve_device(name)
    if number == 1:
        return (first,)
    if first.type != "cuda" or first.index is not None or torch.cuda.device_count() < number:
        raise ModelLoadError(
            f"{number} devices were asked for, and device {name!r} with "
            f"{torch.cuda.device_count()} CUDA device(s) in sight gives no such number; use 'auto' "
            "where there are as many GPUs"
        )
    return tuple(torch.device("cuda", index) for index in range(number))


def is_old_gpu(device: torch.device) -> bool:
    """Whether a CUDA device is older than FlashAttention-2 needs: compute capability 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def resolve_dtype(name: DType, device: torch.device, family: Family) -> torch.dtype:
    """The dtype of the decoder that a setting means.

    Args:
        name: `auto` is bfloat16 on CUDA and float32 on the CPU.
        device: where the model runs.
        family: of the architecture.

    Raises:
        ModelLoadError: the family would score wrongly in it.
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name == "float16" and family == "gemma2":
        raise ModelLoadError(
            "Gemma-2 overflows in float16 and would answer NaN; use 'bfloat16' or 'float32'"
        )
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
