"""Attention on a CPU: this project's kernel beside torch's SDPA kernel, in one run.

Rows of conversations of equal lengths, without shared prompts. A product counts only where a query
sees the key. Beside the rates stands that of a matrix product of 2,048 x 2,048 by oneDNN and torch.

    python tests/bench/cpu_attention.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from rm_core.attention import AttentionParams, Segment
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.cpu_kernels import compile_kernels
from rm_core.model.offload import keep_freed_memory
from rm_core.model.prepacked_linear import PrepackedLinear

ROUNDS = 15
HEADS = [(8, 4, 64), (16, 8, 128), (32, 8, 128)]  # heads, heads of keys, size of a head
LENGTHS = [(64, 32), (350, 10), (1024, 4), (4096, 1)]  # tokens of a conversation, conversations
MATRIX = 2_048


def measure(ways: dict[str, Callable[[], object]], flops: float) -> list[str]:
    """Return the rate of each way in GFLOP/s, medians of rounds in which the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: flops / statistics.median(times) / 1e9 for name, times in seconds.items()}
    first, second = rates.values()
    return [*(f"{name} {rate:.0f}" for name, rate in rates.items()), f"{first / second:.2f}x"]


@torch.inference_mode()
def main() -> None:
    """Print one line for each shape."""
    keep_freed_memory()  # as in a process that has loaded a model
    matrix = torch.randn(MATRIX, MATRIX)
    linear = PrepackedLinear(torch.nn.Linear(MATRIX, MATRIX, bias=False))
    product = {"oneDNN": lambda: linear(matrix), "torch": lambda: matrix @ matrix}
    print("GFLOP/s; matrix product:", *measure(product, 2 * MATRIX**3))
    kernels = {"kernel": CpuKernelBackend(compile_kernels()), "SDPA": CpuSdpaBackend()}
    for num_heads, num_key_value_heads, head_dim in HEADS:
        for length, count in LENGTHS:
            num_tokens = length * count
            segments = [
                Segment(start, start + length, ((start, start + length),))
                for start in range(0, num_tokens, length)
            ]
            query = torch.randn(num_tokens, num_heads, head_dim)
            key, value = torch.randn(2, num_tokens, num_key_value_heads, head_dim)
            params = AttentionParams(head_dim**-0.5)
            ways = {}
            for name, backend in kernels.items():
                plan = backend.plan(segments, num_tokens, query.device)
                ways[name] = lambda b=backend, p=plan: b.attend(p, query, key, value, params)  # noqa: B023
            flops = 4 * count * length * (length + 1) / 2 * num_heads * head_dim
            print(
                f"{num_heads} heads of {head_dim}, {count} conversations of {length}:",
                *measure(ways, flops),
            )


if __name__ == "__main__":
    main()
