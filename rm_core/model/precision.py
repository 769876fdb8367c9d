"""Float32 products in full precision, whatever the host process has set.

With TF32 a float32 product keeps 10 bits of each factor. Rotary angles are such products, so
positions beyond 2,048 would be rounded to others, and float32 rewards would differ from plain
transformers in the third digit. Trainers and container images switch TF32 on for the whole
process, before the model is loaded or after it: so the setting is changed around every batch and
restored, and the device itself is measured when a model is loaded.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rm_core.errors import ModelLoadError

# Of products of normal numbers with 256 terms, divided by the largest result: IEEE float32 was
# 4e-7 away from float64, TF32 is 3e-4 away, bfloat16 2e-3.
_PRODUCT_TOLERANCE = 2e-5
_SIZE = 256
# Half a unit in the last place of a float32 angle, once for the product and once for its factor.
_ANGLE_TOLERANCE = 2.0**-23
_IEEE = ("none", "ieee")  # names of full precision: the default of torch, and the setting


@contextlib.contextmanager
def use_ieee_products() -> Iterator[None]:
    """Compute float32 products in IEEE float32 while the context is active, on every thread.

    The settings are global to the process. They are restored afterwards, in the older and the
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
    except RuntimeError:  # torch refuses to name it where the newer API alone was used
        older = "highest"
    torch.set_float32_matmul_precision("highest")  # in both APIs
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def check_precision(model: nn.Module, devices: Sequence[torch.device], last_position: int) -> None:
    """Measure float32 products on each device, and the rotary embedding of a decoder.

    Args:
        model: transformers' sequence classifier, on its devices.
        devices: where its layers are.
        last_position: largest position that a token may have.

    Raises:
        ModelLoadError: a float32 product has fewer bits than float32, or the cosines and sines of
            positions are not those of their angles.
    """
    with torch.inference_mode(), use_ieee_products():
        for device in devices:
            _check_products(device)
        decoder: Any = model.get_submodule(model.base_model_prefix)  # type: ignore[arg-type]
        _check_rotary(decoder.rotary_emb, next(model.parameters()).dtype, last_position)


def _check_products(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    exact = left.double() @ right.double().T
    product = nn.functional.linear(left.to(device), right.to(device)).double().cpu()
    error = float((product - exact).abs().max() / exact.abs().max())
    if not error <= _PRODUCT_TOLERANCE:
        raise ModelLoadError(
            f"float32 products on {device} are {error:.1g} away from exact ones, relative to the "
            f"largest, and IEEE float32 stays under {_PRODUCT_TOLERANCE:.0g}: something outside "
            "torch's settings lowers their precision; unset NVIDIA_TF32_OVERRIDE and "
            "ONEDNN_DEFAULT_FPMATH_MODE in the environment of this process"
        )


def _check_rotary(rotary: Any, dtype: torch.dtype, last_position: int) -> None:
    """Compare cosines and sines with float64, at the largest position and some before it."""
    rotary = copy.deepcopy(rotary)  # some kinds remember the longest sequence that they saw
    if rotary.inv_freq.dtype != torch.float32:
        raise ModelLoadError(
            f"the rotary frequencies of the model are {rotary.inv_freq.dtype}, not float32: "
            "positions would be rounded"
        )
    places = sorted({max(0, last_position - step) for step in (0, 1, 2, last_position // 3)})
    positions = torch.tensor([places], device=rotary.inv_freq.device)
    like = torch.zeros(1, dtype=dtype, device=rotary.inv_freq.device)
    found = torch.stack(rotary(like, positions)).double()
    angles = positions[0].double().unsqueeze(1) * rotary.inv_freq.double()
    scale = float(rotary.attention_scaling)
    expected = torch.stack([angles.cos(), angles.sin()]).repeat(1, 1, 2).unsqueeze(1) * scale
    allowed = scale * (last_position * _ANGLE_TOLERANCE + torch.finfo(dtype).eps)
    error = float((found - expected).abs().max())
    if not error <= allowed:
        raise ModelLoadError(
            f"the rotary embedding of position {last_position} is {error:.2g} away from its exact "
            f"cosines and sines, and {allowed:.2g} is what float32 angles in {dtype} allow; "
            "positions would be confused. Unset NVIDIA_TF32_OVERRIDE, or update transformers"
        )
