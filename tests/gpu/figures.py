"""All figures of one model, in the order of their worth, each as a row as soon as it is there.

What fails is a row too and ends nothing else; what no time is left for is skipped with a reason.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu import extras
from gpu.fake_kernels import stand_in
from gpu.memory_meter import Clock, Meter, matrix_rate
from gpu.models import Shape, as_loaded, build, num_bytes
from gpu.parity import References, compare, references, same_bits, score
from gpu.sequences import KINDS, LENGTHS, TRUE, Draw, Scale, parity_sequences
from gpu.speed import Speed

from rm_core.attention import (
    AttentionBackend,
    AttentionChoice,
    AttentionTarget,
    choose_attention,
    select_validated_backend,
)
from rm_core.attention.select import is_flash_attn_installed
from rm_core.config import Quantization
from rm_core.model.loading import LoadedModel
from rm_core.packing import TokenIds

Emit = Callable[[dict[str, Any]], None]
# Room for activations beside the weights.
_ROOM = 6 << 30
# For the kernels of FlexAttention, of which there is one for each kind of shape.
_COMPILING_S = 40.0
# The length at which the batch-invariant mode is timed.
_FIXED_LENGTH = 2048


class Figures:
    """Measures one model from its making to the last cell.

    Args:
        shape: of the model.
        meter: of the device; on the CPU everything is scaled down and kernels are stood in for.
        clock: the time there is.
        emit: takes each row.
        scale: of the lengths.
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
        """Everything, row by row."""
        config = self._shape.config(self._dry, self._scale.window)
        needed, free = num_bytes(config) + _ROOM, self._meter.free_bytes()
        if free < needed:
            gib = f"{free / 2**30:.0f} GiB are free and {needed / 2**30:.0f} GiB needed"
            self._row("", "model", {"skipped": f"too large for this device: {gib}"})
            return
        rate = matrix_rate(self._meter, self._scale.matrix)
        model = build(self._shape, config, self._meter.device)
        self._row("", "model", {"device": self._meter.name, "matrix_tflops": rate / 1e12})
        sequences = parity_sequences(Draw(config.vocab_size, self._scale))
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
        """Last: the layers stay compiled."""
        for quantization in extras.QUANTIZATIONS:
            self._attempt(
                quantization, "quantized", lambda q=quantization: self._quantized(model, q)
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
            lambda: self._row(way, "host", extras.host_gap(loaded, tree, self._meter)),
            speed.needed_s(tree),
        )
        name = f"{way}, compiled"
        compiled = dataclasses.replace(loaded, compiled=True)
        self._attempt(
            name,
            "compile",
            lambda: self._row(
                name,
                "compile",
                extras.compiled_layers(
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
            values: dict[str, Any] = {"skipped": "it needs compute capability 8.9"}
        elif extras.has_torchao():
            values = extras.quantized_linears(model, quantization, *size)
        elif quantization == "fp8":
            values = extras.scaled_products(model, *size)
        else:
            values = {"skipped": "torchao is not installed"}
        self._row(quantization, "quantized", values)

    def _ways(self) -> list[str]:
        """Backends of the family, the default one first and eager last."""
        default = choose_attention(
            AttentionTarget(self._shape.family, "cuda", "bfloat16", self._softcap, self._softcap)
        ).name
        ways = [default]
        for name in ("varlen", "flash_attention_2", "flex", "eager"):
            if name == "varlen" and self._softcap:
                continue  # refused for Gemma-2: it would drop the softcap
            if name == "flash_attention_2" and not (self._dry or is_flash_attn_installed()):
                self._row(name, "parity", {"skipped": "flash-attn is not installed"})
            elif name != default:
                ways.append(name)
        return ways

    def _loaded(self, model: Any, name: str, deterministic: bool = False) -> LoadedModel:
        """With a backend that has been proven, as every backend is when the engine loads it."""
        if (name, deterministic) not in self._backends:
            start = time.monotonic()
            if self._dry:
                backend = stand_in(name, deterministic)
            else:
                choice = AttentionChoice(name, "asked for by the check")
                _, backend = select_validated_backend(
                    choice, model, model.device, requested=name, deterministic=deterministic
                )
            way = f"{name}, deterministic" if deterministic else name
            self._row(way, "proof", {"seconds": time.monotonic() - start})
            self._backends[name, deterministic] = backend
        return as_loaded(model, name, self._backends[name, deterministic], deterministic)

    def _parity(self, model: Any, sequences: list[TokenIds], ways: list[str]) -> None:
        reference: References = references(model, sequences, self._meter)

        def compared(name: str) -> None:
            ours = score(self._loaded(model, name), sequences, self._scale.row)
            self._row(name, "parity", compare(ours, reference))

        for name in ways:
            needed_s = 5.0 if self._dry or name != "flex" else _COMPILING_S
            self._attempt(name, "parity", lambda name=name: compared(name), needed_s)

    def _bits(self, model: Any, name: str, way: str, sequences: list[TokenIds]) -> None:
        loaded = self._loaded(model, name, deterministic=True)
        fill = self._scale.fixed_row
        self._row(way, "bits", same_bits(loaded, sequences, fill, fill))

    def _speeds(self, model: Any, speed: Speed, ways: list[str]) -> None:
        for index, way in enumerate(ways):
            if way in self._failed or (way, False) not in self._backends:
                self._row(way, "speed", {"skipped": "no figures of parity"})
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
        """transformers has no SDPA that keeps Gemma-2's softcap, so eager stands there."""
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
        """Run a step unless time is over; whatever it raises becomes a row."""
        if self._clock.left < needed_s:
            left = f"{needed_s:.0f} s needed, {max(0.0, self._clock.left):.0f} there"
            self._row(way, what, {"skipped": f"no time left ({left})"} | (at or {}))
            return
        try:
            step()
        # Kernels and compilers raise classes of their own, and the rest shall still run.
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
        self._meter.wait()  # raises again if the device itself is out of order: then this ends

    def _row(self, way: str, what: str, values: dict[str, Any]) -> None:
        self._emit({"model": self._shape.name, "way": way, "what": what} | values)
