"""Measurements besides attention: quantized linear layers, compiled layers, time on the host.

Each function returns the values of one row of `make gpu-check`.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from typing import Any

import torch
from gpu.memory_meter import Meter
from torch import nn

from rm_core.compilation import CompilationChoice, recompile_options
from rm_core.config import Quantization
from rm_core.model.forward import forward_batch
from rm_core.model.loading import LoadedModel
from rm_core.model.quantization import check_quantization, quantize, silence_torchao
from rm_core.packing import PrefixTree, pack

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8", "fp8-weights")
# Lengths of rows for which a compiler should not compile again; among them widths of models, heads.
_LENGTHS = (2, 17, 32, 64, 100, 128, 129, 500, 1024, 1500, 2048, 3000, 4096)


def get_compile_options(meter: Meter) -> dict[str, Any]:
    """Return the loader's options of `torch.compile`; a dry run only traces."""
    options = {"backend": "eager"} if meter.device.type == "cpu" else {}
    return {"dynamic": True, **recompile_options(), **options}


def has_torchao() -> bool:
    return importlib.util.find_spec("torchao") is not None


@torch.inference_mode()
def measure_quantized_linears(
    model: Any, quantization: Quantization, meter: Meter, num_tokens: int, most_s: float
) -> dict[str, Any]:
    """Time the linear layers of one decoder layer in bfloat16 and quantized, on a full row.

    Both are compiled, as the loader does with quantized layers; traced in a dry run.

    `alone` is the largest difference between a token's outputs alone and with the other tokens,
    relative to the largest output; with one scale for all tokens it is about 0.1.
    """
    silence_torchao()
    compilation = CompilationChoice(True, "for the check")
    check_quantization(
        quantization,
        meter.device,
        torch.bfloat16,
        deterministic=False,
        compilation=compilation,
    )
    plain = nn.ModuleList(m for m in model.model.layers[0].modules() if isinstance(m, nn.Linear))
    layers = copy.deepcopy(plain)
    quantize(layers, quantization)
    rows = _draw_rows(plain, num_tokens)
    options = get_compile_options(meter)
    before, after = (
        meter.seconds(
            torch.compile(
                lambda linears=linears: [layer(rows[layer.in_features]) for layer in linears],
                **options,
            ),
            most_s,
        )
        for linears in (plain, layers)
    )
    alone = 0.0
    for layer in layers:
        row = rows[layer.in_features]
        together = layer(row)[:, :1].float()
        difference = (layer(row[:, :1]).float() - together).abs().max()
        alone = max(alone, float(difference / together.abs().max()))
    return {"seconds": after, "bfloat16_s": before, "alone": alone, "ok": alone < 0.02}


@torch.inference_mode()
def measure_scaled_products(
    model: Any, meter: Meter, num_tokens: int, most_s: float
) -> dict[str, Any]:
    """Time fp8 products with one scale for each row by torch only, for use without torchao."""
    plain = [m for m in model.model.layers[0].modules() if isinstance(m, nn.Linear)]
    rows = _draw_rows(plain, num_tokens)
    factors: list[dict[str, Any]] = []
    for layer in plain:
        left, left_scale = _to_fp8(rows[layer.in_features][0])
        right, right_scale = _to_fp8(layer.weight)
        scales = {"scale_a": left_scale, "scale_b": right_scale.t()}
        factors.append({"input": left, "mat2": right.t(), "out_dtype": torch.bfloat16} | scales)
    before = meter.seconds(lambda: [layer(rows[layer.in_features]) for layer in plain], most_s)
    after = meter.seconds(lambda: [torch._scaled_mm(**product) for product in factors], most_s)
    return {"seconds": after, "bfloat16_s": before, "note": "torch._scaled_mm without torchao"}


def measure_compiled_layers(
    model: Any, loaded: LoadedModel, tree: PrefixTree, meter: Meter, most_s: float, divisor: int
) -> dict[str, Any]:
    """Compile the decoder layers as the loader does, and score rows of many lengths.

    The layers stay compiled. In a dry run on the CPU they are traced, not compiled.
    """
    before = meter.seconds(lambda: forward_batch(loaded, tree), most_s)
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for layer in list(model.model.layers)[:-1]:
        layer.compile(**get_compile_options(meter))
    start = time.monotonic()
    lengths = [max(2, length // divisor) for length in _LENGTHS]
    graphs = []
    for length in lengths:
        (row,) = pack([tuple(range(3, 3 + length))], length).batches
        forward_batch(loaded, row)
        if not graphs:
            first_s = time.monotonic() - start
        graphs.append(counters["stats"]["unique_graphs"])
    after = meter.seconds(lambda: forward_batch(loaded, tree), most_s)
    return {
        "first_s": first_s,
        "seconds": after,
        "uncompiled_s": before,
        "lengths": len(set(lengths)),
        "graphs": graphs[-1],
        "ok": 0 < graphs[0] == graphs[-1],
    }


def measure_host_gap(loaded: LoadedModel, tree: PrefixTree, meter: Meter) -> dict[str, Any]:
    """Measure the time of a batch before the decoder's first kernel and after its last kernel."""
    decoder: nn.Module = loaded.model.get_submodule(loaded.model.base_model_prefix)
    marks: list[Any] = []
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: marks.append(meter.mark())),
        decoder.register_forward_hook(lambda *_: marks.append(meter.mark())),
    ]
    try:
        forward_batch(loaded, tree)
        meter.wait()
        marks.clear()
        start = time.perf_counter()
        forward_batch(loaded, tree)
        meter.wait()
        seconds = time.perf_counter() - start
    finally:
        for hook in hooks:
            hook.remove()
    return {"seconds": seconds, "gap_s": seconds - meter.between(*marks)}


def _draw_rows(linears: Any, num_tokens: int) -> dict[int, torch.Tensor]:
    """Draw `[1, num_tokens, in_features]` for each width; the second token is much larger."""
    rows: dict[int, torch.Tensor] = {}
    for layer in linears:
        if layer.in_features not in rows:
            row = torch.randn(
                1, num_tokens, layer.in_features, device=layer.weight.device, dtype=torch.bfloat16
            )
            row[:, 1] *= 100
            rows[layer.in_features] = row
    return rows


def _to_fp8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp8 values, and scales `[rows, 1]`."""
    scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
    return (tensor.float() / scale).to(torch.float8_e4m3fn), scale
