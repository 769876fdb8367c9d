"""All measurements of one model, the most important first, each emitted as a row at once.

A failure is a row too and does not end the other measurements; a measurement for which no time is
left is skipped with a reason.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu import extras
from gpu.fake_kernels import make_fake_backend
from gpu.memory_meter import Clock, Meter, measure_matrix_rate
from gpu.models import Shape, build, build_loaded_model, count_bytes
from gpu.parity import References, check_same_bits, compare, compute_references, score
from gpu.sequences import KINDS, LENGTHS, TRUE, Draw, Scale, build_parity_sequences
from gpu.speed import Speed

from rm_core.attention import (
    AttentionBackend,
    AttentionChoice,
    AttentionTarget,
    choose_attention,
    select_validated_backend,
)
from rm_core.attention.select import is_flash_attn_4_installed, is_flash_attn_installed
from rm_core.compilation import CompilationChoice
from rm_core.config import Quantization
from rm_core.model.loading import LoadedModel
from rm_core.model.placement import is_new_gpu
from rm_core.packing import TokenIds

Emit = Callable[[dict[str, Any]], None]
# Memory for activations, in addition to the weights.
_ACTIVATION_BYTES = 6 << 30
# Time to compile the kernels of FlexAttention, one for each kind of shape.
_COMPILING_S = 40.0
# Length of conversations for which the batch-invariant mode is timed.
_FIXED_LENGTH = 2048


class ModelMeasurement:
    """Builds one model and measures it.

    Args:
        shape: shape of the model.
        meter: meter of the device; on the CPU everything is scaled down, with fake kernels.
        clock: the remaining time.
        emit: function that receives each row.
        scale: scale of the lengths.
    """

    def __init__(
        self, shape: Shape, meter: Meter, clock: Clock, emit: Emit, scale: Scale = TRUE
    ) -> None:
        self._shape = shape
        self._meter = meter
        self._clock = clock
        self._emit = emit
        self._scale = scale
        self._dry = meter.device.type != "cuda"
        self._softcap = shape.family == "gemma2"
        self._backends: dict[tuple[str, bool], AttentionBackend] = {}
        self._failed: set[str] = set()

    def run(self) -> None:
        """Run all measurements."""
        config = self._shape.config(self._dry, self._scale.window)
        needed, free = count_bytes(config) + _ACTIVATION_BYTES, self._meter.free_bytes()
        if free < needed:
            gib = f"{free / 2**30:.0f} GiB are free and {needed / 2**30:.0f} GiB are needed"
            self._row("", "model", {"skipped": f"too large for this device: {gib}"})
            return
        rate = measure_matrix_rate(self._meter, self._scale.matrix)
        model = build(self._shape, config, self._meter.device)
        self._row("", "model", {"device": self._meter.name, "matrix_tflops": rate / 1e12})
        sequences = build_parity_sequences(Draw(config.vocab_size, self._scale))
        speed = Speed(model, self._meter, self._scale, rate)
        *fast, eager = ways = self._ways()
        several_rows_s = 1.5 * speed.needed_s(speed.batch("pairs", LENGTHS[-1])[1])
        self._attempt(
            "plain eager", "parity", lambda: self._parity(model, sequences, ways), several_rows_s
        )
        fixed = "eager" if self._softcap else "varlen"
        way = f"{fixed}, deterministic"
        self._attempt(way, "bits", lambda: self._bits(model, fixed, way, sequences), several_rows_s)
        self._speeds(model, speed, fast)
        self._padded(speed)
        self._speeds(model, speed, [eager])
        if way not in self._failed and (fixed, True) in self._backends:
            loaded = self._loaded(model, fixed, deterministic=True)
            for kind in KINDS:
                self._timed(way, kind, _FIXED_LENGTH, loaded, speed)
        self._extras(model, speed, ways)

    def _extras(self, model: Any, speed: Speed, ways: list[str]) -> None:
        """Measure quantization, the host and compiled layers; last, as layers stay compiled."""
        for quantization in extras.QUANTIZATIONS:
            self._attempt(
                quantization,
                "quantized",
                lambda q=quantization: self._quantized(model, q),
                5.0 if self._dry else _COMPILING_S,
            )
        way = next((w for w in ways if (w, False) in self._backends), None)
        if way is None:
            self._row("", "host", {"skipped": "no backend passed"})
            return
        loaded = self._loaded(model, way)
        _, tree = speed.batch("pairs", LENGTHS[1])
        self._attempt(
            way,
            "host",
            lambda: self._row(way, "host", extras.measure_host_gap(loaded, tree, self._meter)),
            speed.needed_s(tree),
        )
        fixed = next((key for key in self._backends if key[1]), None)
        self._attempt(
            way,
            "prefix cache",
            lambda: self._row(
                way,
                "prefix cache",
                extras.measure_prefix_cache(
                    loaded,
                    self._loaded(model, *fixed) if fixed else None,
                    tree,
                    self._meter,
                    self._scale,
                ),
            ),
            2 * speed.needed_s(tree),
        )
        flex = self._backends.get(("flex", False))
        if self._softcap and flex is not None:
            self._attempt(
                "flex",
                "full blocks",
                lambda: self._row(
                    "flex",
                    "full blocks",
                    extras.measure_full_blocks(
                        flex, model.config, tree, self._meter, self._scale.cell_s
                    ),
                ),
                5.0 if self._dry else _COMPILING_S,
            )
        name = f"{way}, compiled"
        compiled = dataclasses.replace(
            loaded, compilation=CompilationChoice(True, "for comparison")
        )
        self._attempt(
            name,
            "compile",
            lambda: self._row(
                name,
                "compile",
                extras.measure_compiled_layers(
                    model, compiled, tree, self._meter, self._scale.cell_s, self._scale.divisor
                ),
            ),
            speed.needed_s(tree) + (5.0 if self._dry else _COMPILING_S),
        )

    def _quantized(self, model: Any, quantization: Quantization) -> None:
        needs_new_gpu = quantization == "fp8" and (
            self._dry or torch.cuda.get_device_capability(self._meter.device) < (8, 9)
        )
        size = self._meter, self._scale.row, self._scale.cell_s
        if needs_new_gpu:
            values: dict[str, Any] = {"skipped": "fp8 needs compute capability 8.9"}
        elif extras.has_torchao():
            values = extras.measure_quantized_linears(model, quantization, *size)
        elif quantization == "fp8":
            values = extras.measure_scaled_products(model, *size)
        else:
            values = {"skipped": "torchao is not installed"}
        self._row(quantization, "quantized", values)

    def _ways(self) -> list[str]:
        """Return the backends of the family, the default backend first and eager last."""
        device = self._meter.device
        default = choose_attention(
            AttentionTarget(
                self._shape.family,
                "cuda",
                "bfloat16",
                self._softcap,
                self._softcap,
                is_new_gpu=is_new_gpu(device),
            )
        ).name
        ways = [default]
        installed = {
            "flash_attention_2": is_flash_attn_installed(),
            "flash_attention_4": is_flash_attn_4_installed() and is_new_gpu(device),
        }
        for name in ("varlen", *installed, "flex", "eager"):
            if name == "varlen" and self._softcap:
                continue  # refused for Gemma-2: it would drop the softcap
            if not (self._dry or installed.get(name, True)):
                self._row(name, "parity", {"skipped": "not installed, or the GPU is too old"})
            elif name != default:
                ways.append(name)
        return ways

    def _loaded(self, model: Any, name: str, deterministic: bool = False) -> LoadedModel:
        """Return the model with a backend that passed its self-check, as in the engine."""
        if (name, deterministic) not in self._backends:
            start = time.monotonic()
            if self._dry:
                backend = make_fake_backend(name, deterministic)
            else:
                choice = AttentionChoice(name, "requested by the check")
                _, backend = select_validated_backend(
                    choice, model, model.device, requested=name, deterministic=deterministic
                )
            way = f"{name}, deterministic" if deterministic else name
            self._row(way, "proof", {"seconds": time.monotonic() - start})
            self._backends[name, deterministic] = backend
        return build_loaded_model(model, name, self._backends[name, deterministic], deterministic)

    def _parity(self, model: Any, sequences: list[TokenIds], ways: list[str]) -> None:
        reference: References = compute_references(model, sequences, self._meter)

        def compare_backend(name: str) -> None:
            rewards = score(self._loaded(model, name), sequences, self._scale.row)
            self._row(name, "parity", compare(rewards, reference))

        for name in ways:
            needed_s = 5.0 if self._dry or name != "flex" else _COMPILING_S
            self._attempt(name, "parity", lambda name=name: compare_backend(name), needed_s)

    def _bits(self, model: Any, name: str, way: str, sequences: list[TokenIds]) -> None:
        loaded = self._loaded(model, name, deterministic=True)
        row_multiple = self._scale.fixed_row
        self._row(way, "bits", check_same_bits(loaded, sequences, row_multiple, row_multiple))

    def _speeds(self, model: Any, speed: Speed, ways: list[str]) -> None:
        for index, way in enumerate(ways):
            if way in self._failed or (way, False) not in self._backends:
                self._row(way, "speed", {"skipped": "no parity results"})
                continue
            loaded = self._loaded(model, way)
            for kind in KINDS:
                for length in LENGTHS:
                    self._timed(way, kind, length, loaded, speed)
            if index == 0 and way != "eager":
                self._attempt(
                    f"{way}, full row",
                    "full row",
                    lambda loaded=loaded, way=way: self._row(
                        f"{way}, full row", "full row", speed.full_row(loaded)
                    ),
                    2 * speed.needed_s(speed.batch("pairs", LENGTHS[-1])[1]),
                )

    def _timed(self, way: str, kind: str, length: int, loaded: LoadedModel, speed: Speed) -> None:
        conversations, tree = speed.batch(kind, length)
        at = {"length": length // self._scale.divisor}
        self._attempt(
            way,
            kind,
            lambda: self._row(way, kind, speed.cell(loaded, conversations, tree) | at),
            speed.needed_s(tree),
            at,
        )

    def _padded(self, speed: Speed) -> None:
        """Time padded batches; with eager for Gemma-2, for which transformers has no SDPA."""
        attention = "eager" if self._softcap else "sdpa"
        way = f"plain {attention}, padded"
        for kind in KINDS:
            for length in LENGTHS:
                at = {"length": length // self._scale.divisor}
                _, tree = speed.batch(kind, length)
                self._attempt(
                    way,
                    kind,
                    lambda kind=kind, length=length, at=at: self._row(
                        way, kind, speed.padded(kind, length, attention) | at
                    ),
                    speed.needed_s(tree) * 2,
                    at,
                )

    def _attempt(
        self,
        way: str,
        what: str,
        step: Callable[[], None],
        needed_s: float = 5.0,
        at: dict[str, Any] | None = None,
    ) -> None:
        """Run a step unless time is over; convert any exception into a row."""
        if self._clock.left < needed_s:
            left = f"{needed_s:.0f} s needed, {max(0.0, self._clock.left):.0f} s left"
            self._row(way, what, {"skipped": f"no time left ({left})"} | (at or {}))
            return
        try:
            step()
        # Kernels and compilers raise arbitrary classes, and the other steps should still run.
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            failure = f"{type(error).__name__}: {lines[0][:200]}"
        else:
            return
        # After the handler: until it ends, the traceback keeps tensors on the device.
        self._row(way, what, {"failed": failure} | (at or {}))
        self._failed.add(way)
        gc.collect()
        self._meter.free_bytes()
        self._meter.wait()  # raises again if the device itself is broken; then the part ends

    def _row(self, way: str, what: str, values: dict[str, Any]) -> None:
        self._emit({"model": self._shape.name, "way": way, "what": what} | values)
