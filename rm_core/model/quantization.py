"""Optional quantization of the decoder's weights, by torchao.

Quantization is lossy by intent, so it is never chosen automatically, it is part of the fingerprint,
and `skyreward verify` reports how well the ranking agrees with full precision.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from rm_core.compilation import CompilationChoice
from rm_core.config import Quantization
from rm_core.errors import ModelLoadError

# torchao's config class for each value of the setting.
_CONFIGS: dict[Quantization, str] = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weights": "Int8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
    "fp8-weights": "Float8WeightOnlyConfig",
}
# Values that quantize activations too, with one scale for each token. A scale for the whole tensor,
# torchao's default for fp8, would make the reward of a conversation depend on its batch.
_DYNAMIC = ("int8", "fp8")
# Smallest magnitude for which the scale of a token is computed: torchao divides by the scale, and
# zeros, as in the embedding of a padding token, would become NaN.
_MIN_MAGNITUDE = 1e-12
# Older releases let every float32 product of the process run in TF32.
_OLDEST_TORCHAO = "0.18"


def check_quantization(
    quantization: Quantization,
    device: torch.device,
    dtype: torch.dtype,
    *,
    deterministic: bool,
    compilation: CompilationChoice,
) -> None:
    """Refuse a quantization that cannot work, before anything heavy is loaded."""
    if quantization == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelLoadError(
            f"quantization {quantization!r} needs torchao: pip install 'skyreward[quantization]', "
            "or use 'none'"
        )
    installed = importlib.metadata.version("torchao")
    if Version(installed) < Version(_OLDEST_TORCHAO):
        raise ModelLoadError(
            f"quantization {quantization!r} needs torchao {_OLDEST_TORCHAO} or newer, and "
            f"{installed} is installed: pip install --upgrade 'torchao>={_OLDEST_TORCHAO}', or use "
            "'none'"
        )
    if deterministic:
        raise ModelLoadError(
            f"quantization {quantization!r} is not batch-invariant; use 'none', or turn "
            "`deterministic` off"
        )
    if quantization == "fp8" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)
    ):
        raise ModelLoadError(
            "quantization 'fp8' needs a CUDA device of compute capability 8.9 or newer; use "
            "'fp8-weights', 'int8' or 'int8-weights'"
        )
    if quantization in _DYNAMIC and device.type == "cuda" and not compilation.is_compiled:
        raise ModelLoadError(
            f"quantization {quantization!r} is slower than none on CUDA if the layers are not "
            "compiled, since each linear layer then quantizes its inputs in many small kernels, "
            f"and they are not compiled ({compilation.reason}); leave the setting `compile` at "
            f"'auto' and use one GPU, or use '{quantization}-weights' to save memory, or 'none'"
        )
    if quantization == "fp8" and dtype != torch.bfloat16:
        raise ModelLoadError(
            "quantization 'fp8' uses one scale for each token, which torchao supports for dtype "
            f"'bfloat16' only, not {str(dtype).removeprefix('torch.')!r}; use dtype 'bfloat16' or "
            "'fp8-weights'"
        )


def silence_torchao() -> None:
    """Silence harmless warnings about optional components when torchao is imported.

    If torchao is installed, transformers imports it together with any model.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quantize(layers: nn.Module, quantization: Quantization) -> None:
    """Quantize the weights of all linear layers of the decoder, in place; `none` does nothing."""
    if quantization == "none":
        return
    try:
        import torchao.quantization
        from torchao.quantization import PerRow, quantize_
        from torchao.utils import TorchAOBaseTensor

        config: Any = getattr(torchao.quantization, _CONFIGS[quantization])
        options: dict[str, Any] = {"granularity": PerRow()} if quantization in _DYNAMIC else {}
        if quantization == "fp8":
            options["activation_value_lb"] = _MIN_MAGNITUDE
        quantize_(layers, config(**options))
    # torchao may not match the installed torch, torchao checks with assertions, and kernels raise
    # arbitrary exception classes.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ModelLoadError(
            f"quantization {quantization!r} failed: {reason}; use another quantization or 'none'"
        ) from error
    for name, layer in layers.named_modules():
        if isinstance(layer, nn.Linear):
            fault = _find_fault(layer.weight, TorchAOBaseTensor)
            if fault is not None:
                shape = " x ".join(map(str, layer.weight.shape))
                raise ModelLoadError(
                    f"the weight of layer {name} ({shape}) cannot be quantized as "
                    f"{quantization!r}: {fault}; use another quantization or 'none'"
                )


def _find_fault(weight: Any, quantized: type[torch.Tensor]) -> str | None:
    """Return why the result of torchao cannot be used; None if it can."""
    if not isinstance(weight, quantized):
        return "torchao leaves it unquantized, since fp8 needs multiples of 16"
    scale = getattr(weight, "scale", None)
    if scale is not None and bool((scale == 0).any()):
        return "it has rows of zeros, which torchao turns into NaN"
    return None
