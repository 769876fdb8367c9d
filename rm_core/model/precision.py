"""Computes float32 products in full precision, whatever the settings of the host process.

With TF32 a float32 product keeps 10 bits of each factor. Rotary angles are such products, so
positions beyond 2,048 would be rounded to other positions, and float32 rewards would differ from
plain transformers in the third digit. Trainers and container images enable TF32 for the whole
process, before or after the model is loaded. The setting is therefore changed around every batch
and restored, and the device itself is measured when a model is loaded.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rm_core.errors import ModelLoadError
from rm_core.model.decoder import get_decoder, get_vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest allowed error of products of normal numbers with 256 terms, divided by the largest result.
# Difference from float64: IEEE float32 4e-7 (measured), TF32 3e-4, bfloat16 2e-3.
_PRODUCT_TOLERANCE = 2e-5
_SIZE = 256
# Half a unit in the last place of a float32 angle, for the product and again for its factor.
_ANGLE_TOLERANCE = 2.0**-23
_IEEE = ("none", "ieee")  # names of full precision: the default of torch, and the setting


@contextlib.contextmanager
def use_ieee_products() -> Iterator[None]:
    """Compute float32 products in IEEE float32 while the context is active, on every thread.

    The settings are global to the process. They are restored afterwards, in both the older and the
    newer API of torch.
    """
    backends: Any = torch.backends
    kinds = backends.cuda.matmul, backends.mkldnn.matmul
    before = [kind.fp32_precision for kind in kinds]
    if all(precision in _IEEE for precision in before):
        yield
        return
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch raises if only the newer API was used
        older = "highest"
    torch.set_float32_matmul_precision("highest")  # in both APIs
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def check_precision(
    model: PreTrainedModel, devices: Sequence[torch.device], last_position: int
) -> None:
    """Check the precision of float32 products on each device, and of the rotary embedding."""
    with torch.inference_mode(), use_ieee_products():
        for device in devices:
            _check_products(device)
        rotary = getattr(get_decoder(model), "rotary_emb", None)
        if rotary is not None:
            has_rows = get_vision_tower(model) is not None
            _check_rotary(rotary, next(model.parameters()).dtype, last_position, has_rows)


def _check_products(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    exact = left.double() @ right.double().T
    product = nn.functional.linear(left.to(device), right.to(device)).double().cpu()
    error = float((product - exact).abs().max() / exact.abs().max())
    if not error <= _PRODUCT_TOLERANCE:
        raise ModelLoadError(
            f"float32 products on {device} differ from exact products by {error:.1g}, relative to "
            f"the largest, and IEEE float32 stays below {_PRODUCT_TOLERANCE:.0g}: something "
            "outside torch's settings lowers the precision; unset NVIDIA_TF32_OVERRIDE and "
            "ONEDNN_DEFAULT_FPMATH_MODE in the environment of this process"
        )


def _check_rotary(rotary: Any, dtype: torch.dtype, last_position: int, has_rows: bool) -> None:
    """Compare cosines and sines with float64, at the largest position and some smaller ones.

    With `has_rows`, positions have three rows, as those of vision-language models.
    """
    rotary = copy.deepcopy(rotary)  # some rotary embeddings store the longest sequence so far
    # Gemma-3 has frequencies for each type of layer, such as `full_attention_inv_freq`.
    for name, frequencies in dict(rotary.named_buffers()).items():
        if not name.endswith("inv_freq") or "original" in name:
            continue
        kind = name.removesuffix("inv_freq").removesuffix("_")
        if frequencies.dtype != torch.float32:
            raise ModelLoadError(
                f"the rotary frequencies of the model are {frequencies.dtype}, not float32: "
                "positions would be rounded"
            )
        checked = sorted({max(0, last_position - step) for step in (0, 1, 2, last_position // 3)})
        positions = torch.tensor([checked], device=frequencies.device)
        rows = positions.expand(3, 1, -1) if has_rows else positions
        dtype_source = torch.zeros(1, dtype=dtype, device=frequencies.device)
        computed = torch.stack(rotary(dtype_source, rows, *([kind] if kind else []))).double()
        if computed.dim() > 4:  # some releases of transformers merge the rows in each layer
            computed = computed[:, 0]
        angles = positions[0].double().unsqueeze(1) * frequencies.double()
        scale = float(getattr(rotary, f"{kind}_attention_scaling" if kind else "attention_scaling"))
        exact = torch.stack([angles.cos(), angles.sin()]).unsqueeze(1) * scale
        # Pairs are halves of a head, or neighbors as in Cohere's models.
        layouts = torch.cat([exact, exact], -1), exact.repeat_interleave(2, -1)
        if computed.shape != layouts[0].shape:
            continue
        allowed = scale * (last_position * _ANGLE_TOLERANCE + torch.finfo(dtype).eps)
        error = min(float((computed - expected).abs().max()) for expected in layouts)
        if not error <= allowed:
            raise ModelLoadError(
                f"the rotary embedding of position {last_position} differs from exact cosines and "
                f"sines by {error:.2g}, and float32 angles in {dtype} allow {allowed:.2g}; "
                "positions would be confused. Unset NVIDIA_TF32_OVERRIDE, or update transformers"
            )
