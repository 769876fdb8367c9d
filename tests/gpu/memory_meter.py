"""Measures time and memory, and counts arithmetic operations, for `make gpu-check`.

`Meter` contains everything that differs between a CUDA device and the CPU of a dry run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rm_core.packing import PrefixTree

REPEATS = 3


class Clock:
    """Remaining time.

    Args:
        seconds: time from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Remaining seconds; negative when the time is over."""
        return self._end - time.monotonic()


class Meter:
    """Measures time and memory on a device.

    Args:
        device: a CUDA device, or the CPU, for which no memory is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._before = 0

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self._cuda else "CPU"

    def wait(self) -> None:
        """Wait until the device has completed all its work."""
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """Return the free memory of the device, after emptying the allocator's cache."""
        if not self._cuda:
            return 1 << 60
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def watch_memory(self) -> None:
        """Start to measure `peak_bytes`."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int:
        """Return the peak memory since `watch_memory`, minus the memory allocated then."""
        if not self._cuda:
            return 0
        return int(torch.cuda.max_memory_allocated(self.device)) - self._before

    def mark(self) -> Any:
        """Record a moment in the work of the device."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks that the device has passed."""
        return float(start.elapsed_time(end)) / 1000 if self._cuda else float(end - start)

    def seconds(self, run: Callable[[], object], most_s: float, repeats: int = REPEATS) -> float:
        """Return the median time of up to `repeats` runs, after a warm-up run.

        Args:
            run: function to time; its peak memory is measured.
            most_s: another run starts only if all runs together will take at most this long.
            repeats: maximum number of runs.
        """
        run()
        self.wait()
        self.watch_memory()
        times: list[float] = []
        while not times or (len(times) < repeats and sum(times) + max(times) <= most_s):
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


@torch.inference_mode()
def measure_matrix_rate(meter: Meter, size: int) -> float:
    """Measure the operations per second of a square bfloat16 product of random numbers."""
    left, right = (
        torch.randn(size, size, device=meter.device, dtype=torch.bfloat16) for _ in range(2)
    )
    num_products = 10

    def compute_products() -> None:
        for _ in range(num_products):
            left @ right

    return 2.0 * size**3 * num_products / meter.seconds(compute_products, most_s=1.0, repeats=5)


def operations(model: Any, tree: PrefixTree) -> float:
    """Count the operations of the decoder for the distinct tokens of a batch.

    Two for each weight of a linear layer and token, and four for each channel of a head, query
    and key that the query sees. The last layer counts in full, though it runs on few tokens.
    """
    config = model.config
    weights = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, nn.Linear))
    per_key = 4.0 * config.num_attention_heads * config.head_dim
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    num_keys = {
        kind: sum(
            _count_keys(segment.depth, len(segment.token_ids), window) for segment in tree.segments
        )
        for kind, window in (
            ("full_attention", None),
            ("sliding_attention", getattr(config, "sliding_window", None)),
        )
    }
    return 2.0 * weights * tree.num_tokens + per_key * sum(num_keys[kind] for kind in kinds)


def _count_keys(depth: int, num_tokens: int, window: int | None) -> int:
    """Count the keys that the tokens of a segment see, added up."""
    keys = range(depth + 1, depth + num_tokens + 1)
    return sum(keys) if window is None else sum(min(key, window) for key in keys)
