"""What the self-check adds to loading, for the demo model and for one of the shape of Qwen3-0.6B.

Loads alternate with and without it, each followed by the warm-up, which every start runs; the
first load of each is left out. A matrix product of 2,048 x 2,048 before each round shows what the
machine gives at that moment.

    python tests/bench/self_check.py [--rounds 5] [--only demo]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from rm_core import ModelConfig, RewardScorer
from rm_core.catalog.entries import seeds_dir

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1_024,
    "intermediate_size": 3_072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def build_06b(folder: Path) -> Path:
    """Random weights, with the vocabulary of the demo model in the place of Qwen's."""
    tokenizer = AutoTokenizer.from_pretrained(seeds_dir() / "demo")
    config = Qwen3Config(
        **SHAPE, num_labels=1, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=4_096
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gigaflops() -> float:
    matrix = torch.randn(2_048, 2_048)
    started = time.perf_counter()
    matrix @ matrix
    return 2 * 2_048**3 / (time.perf_counter() - started) / 1e9


def rounds(name: str, number: int) -> Iterator[tuple[float, float, float]]:
    """Seconds without and with the self-check, and the machine's rate; the first is set-up."""
    for attempt in range(number + 1):
        rate = gigaflops()
        seconds = []
        for self_check in (False, True):
            started = time.perf_counter()
            RewardScorer.load(ModelConfig(name, device="cpu", self_check=self_check)).warm_up()
            seconds.append(time.perf_counter() - started)
        if attempt:
            yield seconds[0], seconds[1], rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["demo", "0.6B"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = {"demo": "demo"} if options.only != "0.6B" else {}
        if options.only != "demo":
            names["0.6B"] = str(build_06b(Path(folder)))
        for label, name in names.items():
            measured = list(rounds(name, options.rounds))
            without, with_it, rate = (
                statistics.median(values) for values in zip(*measured, strict=True)
            )
            added = statistics.median(b - a for a, b, _ in measured)
            print(
                f"{label:6}load and warm-up {without:6.2f} s, with the self-check {with_it:6.2f} s,"
                f" added {added:5.2f} s; matrix product {rate:4.0f} GFLOP/s"
            )


if __name__ == "__main__":
    main()
