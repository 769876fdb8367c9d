"""Fewer bits for the decoder's weights, where they are asked for: torchao does the arithmetic.

Lossy by intent, so it is never chosen automatically, it shows in the fingerprint, and
`skyreward verify` says how well the ranking agrees with full precision.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import nn

from rm_core.config import Quantization
from rm_core.errors import ModelLoadError

# torchao's name of each; the activations of the dynamic ones are quantized row by row as they come.
_CONFIGS: dict[Quantization, str] = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weights": "Int8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
    "fp8-weights": "Float8WeightOnlyConfig",
}


def check_quantization(
    quantization: Quantization, device: torch.device, *, deterministic: bool
) -> None:
    """Refuse what cannot work, before anything heavy is loaded.

    Raises:
        ModelLoadError: torchao is missing, the device cannot, or the mode forbids it.
    """
    if quantization == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelLoadError(
            f"quantization {quantization!r} needs torchao: pip install 'skyreward[quantization]', "
            "or use 'none'"
        )
    if deterministic:
        raise ModelLoadError(
            f"quantization {quantization!r} is not batch-invariant; use 'none', or switch "
            "`deterministic` off"
        )
    if quantization == "fp8" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)
    ):
        raise ModelLoadError(
            "quantization 'fp8' needs a CUDA device of compute capability 8.9 or newer; use "
            "'fp8-weights', 'int8' or 'int8-weights'"
        )


def silence_torchao() -> None:
    """Keep the import of torchao from telling of parts that are not there; nothing is wrong.

    Where it is installed, transformers imports it together with any model.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quantize(layers: nn.Module, quantization: Quantization) -> None:
    """Replace the weights of all linear layers, in place, on the device where they are.

    Args:
        layers: of the decoder; embeddings and head stay as they are.
        quantization: any; `none` does nothing.
    """
    if quantization == "none":
        return
    import torchao.quantization

    config: Any = getattr(torchao.quantization, _CONFIGS[quantization])
    torchao.quantization.quantize_(layers, config())
