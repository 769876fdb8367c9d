"""Resolves the settings `device` and `dtype`, and spreads a model over several devices.

The first layers are on the first device, and so on, for models that do not fit on one device. A
batch goes through the devices one after another, so the devices wait for each other: if a model
fits on one device, replicas are faster. transformers' decoder runs unchanged; hooks before its
layers transfer a layer's inputs to the layer's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rm_core.config import DType
from rm_core.errors import ModelLoadError
from rm_core.model.decoder import get_decoder, get_decoder_layers, get_vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_device(name: str) -> torch.device:
    """Return the device for the setting `device`; `auto` is the first CUDA device, else the CPU."""
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
    """Return the devices over which a model is spread, in the order of its layers."""
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
    """Return the decoder's dtype for the setting; `auto` is bfloat16 on CUDA, else float32."""
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


def move_to_devices(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Move a model to its devices, about the same number of layers on each; in place.

    The embeddings and the vision tower go to the first device, the final norm and the head to the
    last.
    """
    if len(devices) == 1:
        model.to(devices[0])  # type: ignore[arg-type]
        return
    decoder, layers = get_decoder(model), get_decoder_layers(model)
    for layer, device in zip(layers, get_layer_devices(model, devices), strict=True):
        layer.to(device)
    for name, module in decoder.named_children():
        if name != "layers":
            module.to(devices[-1] if "norm" in name else devices[0])
    tower = get_vision_tower(model)
    for module in model.children():
        if module is not tower and decoder not in (model, module, *module.modules()):
            module.to(devices[-1])
    if tower is not None:
        tower.to(devices[0])


def install_transfer_hooks(
    model: PreTrainedModel, devices: Sequence[torch.device]
) -> list[RemovableHandle]:
    """Install hooks that transfer a layer's inputs to its device; return what removes each of them.

    Install them last, after all other changes to the layers.
    """
    layers = get_decoder_layers(model)
    hooks = [_DeviceTransferHook(device) for device in devices]
    return [
        layer.register_forward_pre_hook(
            hooks[get_stage(index, len(layers), len(devices))], with_kwargs=True
        )
        for index, layer in enumerate(layers)
    ]


def get_layer_devices(
    model: PreTrainedModel, devices: Sequence[torch.device]
) -> list[torch.device]:
    """Return the device of each layer of a model that `move_to_devices` has moved."""
    number = len(get_decoder_layers(model))
    return [devices[get_stage(index, number, len(devices))] for index in range(number)]


def get_stage(index: int, num_layers: int, num_stages: int) -> int:
    """Return the stage of a layer: stages follow the layers, their sizes differ by at most one."""
    return index * num_stages // num_layers


class _DeviceTransferHook:
    """Transfers a layer's arguments to its device; shared arguments once for all its layers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The position embeddings of the last call, and their copy on this device.
        self._embeddings: tuple[Any, Any] = (None, None)

    def __call__(
        self, _layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        moved = {name: self._transfer(name, value) for name, value in options.items()}
        return tuple(self._transfer("", value) for value in args), moved

    def _transfer(self, name: str, value: Any) -> Any:
        if name == "position_embeddings":
            if self._embeddings[0] is not value:
                moved = tuple(tensor.to(self._device, non_blocking=True) for tensor in value)
                self._embeddings = value, moved
            return self._embeddings[1]
        if isinstance(value, torch.Tensor):
            return value.to(self._device, non_blocking=True)
        return value
