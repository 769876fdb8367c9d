"""A model over several devices: the first layers on the first one, the rest behind it.

For models that do not fit one device. A batch goes through the devices in turn, so they wait for
each other: where a model fits, replicas are faster. transformers' decoder runs unchanged; hooks
before its layers bring what a layer is given to where the layer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rm_core.attention import PackedAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Stages: TypeAlias = tuple[PackedAttention, ...]
"""The attention of one batch for each device, in their order."""


def move_to_devices(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Put a classifier on its devices, about as many layers on each; in place.

    Args:
        model: transformers' sequence classifier of one of the three families.
        devices: the embeddings go to the first one, final norm and head to the last.
    """
    if len(devices) == 1:
        model.to(devices[0])  # type: ignore[arg-type]
        return
    decoder = model.get_submodule(model.base_model_prefix)
    layers = decoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    for index, layer in enumerate(layers):
        layer.to(devices[get_stage(index, len(layers), len(devices))])
    for name, module in decoder.named_children():
        if name != "layers":
            module.to(devices[-1] if name == "norm" else devices[0])
    model.get_submodule("score").to(devices[-1])


def install_transfer_hooks(
    model: PreTrainedModel, devices: Sequence[torch.device]
) -> list[RemovableHandle]:
    """Let layers take what comes from another device; after everything else was done to them.

    Args:
        model: placed; its decoder may be called with `packed`, a `Stages`.
        devices: as for `place`.

    Returns:
        A handle for each layer, which takes the connection away again.
    """
    decoder = model.get_submodule(model.base_model_prefix)
    layers = decoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    borders = [_DeviceTransferHook(stage, device) for stage, device in enumerate(devices)]
    return [
        layer.register_forward_pre_hook(
            borders[get_stage(index, len(layers), len(devices))], with_kwargs=True
        )
        for index, layer in enumerate(layers)
    ]


def get_stage(index: int, num_layers: int, num_stages: int) -> int:
    """Which device a layer is on: stages in the order of the layers, sizes one apart at most."""
    return index * num_stages // num_layers


class _DeviceTransferHook:
    """Brings the arguments of a layer to its device, those of all its layers once."""

    def __init__(self, stage: int, device: torch.device) -> None:
        self._stage = stage
        self._device = device
        self._embeddings: tuple[Any, Any] = (None, None)  # as they came last, and brought here

    def __call__(
        self, _layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        brought = {name: self._transfer(name, value) for name, value in options.items()}
        return tuple(self._transfer("", value) for value in args), brought

    def _transfer(self, name: str, value: Any) -> Any:
        if name == "packed":
            return value[self._stage]
        if name == "position_embeddings":
            if self._embeddings[0] is not value:
                here = tuple(tensor.to(self._device, non_blocking=True) for tensor in value)
                self._embeddings = value, here
            return self._embeddings[1]
        if isinstance(value, torch.Tensor):
            return value.to(self._device, non_blocking=True)
        return value
