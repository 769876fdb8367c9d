"""Resolves and checks the settings `device` and `dtype` of a model."""

from __future__ import annotations

import torch

from rm_core.config import DType
from rm_core.errors import ModelLoadError


def resolve_device(name: str) -> torch.device:
    """Return the device for the setting `device`; `auto` is the first CUDA device, else the CPU.

    Raises:
        ModelLoadError: the device is unknown, unsupported or not available.
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
            f"device {name!r} was requested, but torch {torch.__version__} finds no CUDA device; "
            "use 'auto' or 'cpu', or install torch for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {name!r} was requested, but torch finds {torch.cuda.device_count()} CUDA "
            "device(s), numbered from 0"
        )
    return device


def resolve_devices(name: str, number: int) -> tuple[torch.device, ...]:
    """Return the devices over which a model is spread, in the order of its layers.

    Raises:
        ModelLoadError: fewer devices are available, or `name` does not allow several.
    """
    first = resolve_device(name)
    if number == 1:
        return (first,)
    if first.type != "cuda" or first.index is not None or torch.cuda.device_count() < number:
        raise ModelLoadError(
            f"{number} devices were requested, but device {name!r} with "
            f"{torch.cuda.device_count()} available CUDA device(s) does not provide them; use "
            "'auto' on a machine with enough GPUs"
        )
    return tuple(torch.device("cuda", index) for index in range(number))


def is_old_gpu(device: torch.device) -> bool:
    """Return whether a GPU is too old for FlashAttention-2: compute capability below 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def is_new_gpu(device: torch.device) -> bool:
    """Return whether FlashAttention-4 has kernels for a GPU: compute capability 9.0 or newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


# Decoders whose hidden states exceed the range of float16.
_NO_FLOAT16 = {"gemma2": "Gemma-2", "gemma3": "Gemma-3", "gemma3_text": "Gemma-3"}


def resolve_dtype(name: DType, device: torch.device, family: str) -> torch.dtype:
    """Return the decoder's dtype for the setting `dtype`; `auto` is bfloat16 on CUDA, else float32.

    Raises:
        ModelLoadError: the family would score wrongly in this dtype.
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name == "float16" and family in _NO_FLOAT16:
        raise ModelLoadError(
            f"{_NO_FLOAT16[family]} overflows in float16 and would return NaN; use 'bfloat16' or "
            "'float32'"
        )
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
