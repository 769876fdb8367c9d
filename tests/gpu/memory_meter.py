"""Time, memory and arithmetic: what the figures of `make gpu-check` are measured with.

`Meter` holds all that differs between a CUDA device and the CPU of a dry run.
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
    """Seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Below 0 once the time is over."""
        return self._end - time.monotonic()


class Meter:
    """A device.

    Args:
        device: of CUDA, or the CPU, which has no memory figures.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._before = 0

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self._cuda else "CPU"

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """What nobody has taken, after giving back what is only kept for later."""
        if not self._cuda:
            return 1 << 60
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def watch_memory(self) -> None:
        """Let `peak_bytes` count from here."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int:
        """Most that was taken at once on top of what was there at `watch_memory`."""
        if not self._cuda:
            return 0
        return int(torch.cuda.max_memory_allocated(self.device)) - self._before

    def mark(self) -> Any:
        """A moment in the work of the device."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks that the device has passed."""
        return float(start.elapsed_time(end)) / 1000 if self._cuda else float(end - start)

    def seconds(self, run: Callable[[], object], most_s: float, repeats: int = REPEATS) -> float:
        """Median time of up to three runs after one that does not count.

        Args:
            run: what is timed; its peak memory is watched.
            most_s: another run is made only if it will be over by then.
            repeats: how many at most.
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
def matrix_rate(meter: Meter, size: int) -> float:
    """Operations per second of a square bfloat16 product, on random numbers."""
    left, right = (
        torch.randn(size, size, device=meter.device, dtype=torch.bfloat16) for _ in range(2)
    )
    times = 10

    def products() -> None:
        for _ in range(times):
            left @ right

    return 2.0 * size**3 * times / meter.seconds(products, most_s=1.0, repeats=5)


def operations(model: Any, tree: PrefixTree) -> float:
    """Of the distinct tokens of a batch through the whole decoder.

    Two for each weight of a linear layer and token, and four for each channel of a head, query
    and key that it sees. The last layer counts in full, though it runs on few tokens.
    """
    config = model.config
    weights = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, nn.Linear))
    per_key = 4.0 * config.num_attention_heads * config.head_dim
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    seen = {
        kind: sum(_keys_seen(run.depth, len(run.token_ids), window) for run in tree.segments)
        for kind, window in (
            ("full_attention", None),
            ("sliding_attention", getattr(config, "sliding_window", None)),
        )
    }
    return 2.0 * weights * tree.num_tokens + per_key * sum(seen[kind] for kind in kinds)


def _keys_seen(depth: int, number: int, window: int | None) -> int:
    """By all tokens of a run together."""
    keys = range(depth + 1, depth + number + 1)
    return sum(keys) if window is None else sum(min(key, window) for key in keys)
