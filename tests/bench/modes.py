"""What the modes of the engine cost, beside the default, and what packing takes.

Pairs and groups of 16 in process, the modes taking turns, median of the rounds; `compile` compiles
before it is timed. Then 10,000 conversations of 1,000 tokens, four to a prompt, through `pack`.

    python tests/bench/modes.py --data FOLDER [--rounds 3]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from workloads import build_model, groups_of_16, rm_bench_pairs

from rm_core import BatchConfig, Encoded, ModelConfig, RewardScorer, pack

MODES = {"default": {}, "deterministic": {"deterministic": True}, "compile": {"compile": True}}


def packing_seconds() -> float:
    chance = random.Random(0)
    prompts = [tuple(chance.choices(range(100_000), k=600)) for _ in range(2_500)]
    sequences = [p + tuple(chance.choices(range(100_000), k=400)) for p in prompts for _ in "abcd"]
    chance.shuffle(sequences)
    started = time.perf_counter()
    pack(sequences, 16_384)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    workloads = {
        "pairs": rm_bench_pairs(options.data, 5),
        "groups of 16": groups_of_16(options.data, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = str(build_model(Path(folder), list(workloads.values())))
        scorers = {
            # Without a prefix cache: every round scores the same prompts.
            name: RewardScorer.load(
                ModelConfig(path, device="cpu", **mode), BatchConfig(prefix_cache_bytes=0)
            )
            for name, mode in MODES.items()
        }
    for workload, conversations in workloads.items():
        encoded = scorers["default"].encoder.encode_all(conversations)
        sequences = [e.input_ids for e in encoded if isinstance(e, Encoded)]
        seconds: dict[str, list[float]] = {name: [] for name in scorers}
        for attempt in range(options.rounds + 1):
            for name, scorer in scorers.items():
                started = time.perf_counter()
                scorer.score_ids(sequences)
                if attempt:
                    seconds[name].append(time.perf_counter() - started)
        for name, times in seconds.items():
            rate = sum(map(len, sequences)) / statistics.median(times)
            ratios = [a / b for a, b in zip(seconds["default"], times, strict=True)]
            print(f"{workload:14}{name:15}{rate:9.0f} tokens/s {statistics.median(ratios):6.2f} x")
    print(f"packing 10,000 conversations of 1,000 tokens: {packing_seconds():.2f} s")


if __name__ == "__main__":
    main()
