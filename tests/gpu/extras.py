"""Measurements besides attention: quantization, compiled layers, the host, the prefix cache.

Each function returns the values of one row of `make gpu-check`.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections import deque
from typing import Any

import torch
from gpu.memory_meter import Meter
from gpu.sequences import Scale
from torch import nn

from rm_core.attention import AttentionParams, build_segments
from rm_core.attention.flex import BLOCK, FlexBackend
from rm_core.compilation import CompilationChoice, recompile_options
from rm_core.config import Quantization
from rm_core.model.forward import LaunchedBatch, forward_batch, launch_batch
from rm_core.model.loading import LoadedModel
from rm_core.model.quantization import check_quantization, quantize, silence_torchao
from rm_core.packing import PrefixTree, pack
from rm_core.prefix_cache import PrefixCache

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8", "fp8-weights")
# Lengths of rows for which a compiler should not compile again; among them widths of models, heads.
_LENGTHS = (2, 17, 32, 64, 100, 128, 129, 500, 1024, 1500, 2048, 3000, 4096)

# Batches of the measurement with two in flight.
_IN_FLIGHT_RUNS = 4


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
    """Measure the time of a batch before the decoder's first kernel and after its last kernel.

    For one batch at a time, and for two in flight as `RewardScorer` runs them on CUDA.
    """
    decoder: nn.Module = loaded.model.base_model
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
    decoder_s = meter.between(*marks)

    def run_in_flight() -> None:
        running: deque[LaunchedBatch] = deque()
        for _ in range(_IN_FLIGHT_RUNS):
            running.append(launch_batch(loaded, tree))
            if len(running) == 2:
                running.popleft().read()
        running.popleft().read()

    in_flight_s = meter.seconds(run_in_flight, 0.0) / _IN_FLIGHT_RUNS
    return {
        "seconds": seconds,
        "gap_s": seconds - decoder_s,
        "in_flight_s": in_flight_s,
        "in_flight_gap_s": in_flight_s - decoder_s,
    }


def measure_prefix_cache(
    loaded: LoadedModel, fixed: LoadedModel | None, tree: PrefixTree, meter: Meter, scale: Scale
) -> dict[str, Any]:
    """Time a batch whose first halves of conversations are in the prefix cache, and without it.

    Args:
        loaded: the model.
        fixed: the model in its batch-invariant mode, whose rewards have to be equal to the last
            bit without the cache, where it is empty and where it has the prompts; None: skipped.
        tree: the batch to time. For the bits, as many of its sequences as a fixed row holds.
        meter: meter of the device.
        scale: scale of the lengths.
    """
    config, device = loaded.model.config, loaded.device
    cache = PrefixCache(
        tree.num_tokens,
        config.num_key_value_heads,
        config.head_dim,
        loaded.model.dtype,
        [device] * config.num_hidden_layers,
        min_tokens=1,  # the dry run has few
    )

    def score(model: LoadedModel, tree: PrefixTree, row_multiple: int) -> tuple[list[float], int]:
        cached = cache.acquire(tree, [len(ids) // 2 for ids in tree.sequences])
        rewards = forward_batch(model, cached.tree, row_multiple, cached)
        cache.commit(cached)
        return rewards, cached.tree.num_cached_tokens

    before = meter.seconds(lambda: forward_batch(loaded, tree), scale.cell_s)
    after = meter.seconds(lambda: score(loaded, tree, 1), scale.cell_s)
    _, num_cached = score(loaded, tree, 1)
    row = {"seconds": after, "uncached_s": before, "cached": num_cached, "tokens": tree.num_tokens}
    if fixed is None:
        return {**row, "ok": num_cached > 0}
    cache.clear()
    few = pack(tree.sequences, scale.fixed_row).batches[0]
    expected = forward_batch(fixed, few, scale.fixed_row)
    (missed, none), (hit, some) = (score(fixed, few, scale.fixed_row) for _ in range(2))
    same = sum(a == b == c for a, b, c in zip(expected, missed, hit, strict=True))
    ok = none == 0 < min(some, num_cached) and same == len(expected)
    return {**row, "same": same, "of": len(expected), "ok": ok}


@torch.inference_mode()
def measure_full_blocks(
    backend: FlexBackend, config: Any, tree: PrefixTree, meter: Meter, most_s: float
) -> dict[str, Any]:
    """Time FlexAttention of one layer with full blocks, and with a mask in each block."""
    from torch.nn.attention.flex_attention import BlockMask

    plan = backend.plan(build_segments(tree), tree.num_keys, meter.device)
    query, key, value = (
        torch.randn(
            tree.num_tokens, heads, config.head_dim, device=meter.device, dtype=torch.bfloat16
        )
        for heads in (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.num_key_value_heads,
        )
    )
    params = AttentionParams(config.head_dim**-0.5, config.attn_logit_softcapping)

    def attend() -> torch.Tensor:
        return backend.attend(plan, query, key, value, params)

    output, full_s = attend(), meter.seconds(attend, most_s)
    mask = plan.block_masks[None]
    full = _read_blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
    listed = full | _read_blocks(mask.kv_num_blocks, mask.kv_indices)
    plan.block_masks[None] = BlockMask.from_kv_blocks(
        listed.sum(1).int()[None, None],
        torch.argsort(listed.int(), dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask.mask_mod,
        seq_lengths=mask.seq_lengths,
    )
    difference = float((attend() - output).abs().max())
    return {
        "seconds": full_s,
        "masked_s": meter.seconds(attend, most_s),
        "full": int(full.sum()),
        "blocks": int(listed.sum()),
        "ok": difference < 0.05,
    }


def _read_blocks(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return which blocks of a BlockMask are listed, `[query blocks, key blocks]`."""
    counts, indices = counts[0, 0], indices[0, 0].long()
    is_listed = torch.arange(indices.shape[1], device=indices.device) < counts.unsqueeze(1)
    return torch.zeros_like(is_listed).scatter(1, indices, is_listed)


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
