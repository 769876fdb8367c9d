"""Tokens per second of this project beside plain transformers, in one run on one machine.

What is measured: the same conversations through (a) `RewardScorer` in this process, (b) plain
transformers one conversation at a time with eager and with SDPA attention, (c) plain transformers
in right-padded batches of 8 with SDPA, sorted by length, and, if an address is given, (d) the
running service, one post of all of them. The ways take turns; each figure is the median of the
rounds. Beside them stands the machine's own limit: the rate of a large float32 matrix product.
The last line is one JSON object.

    python tests/bench/throughput.py [--data FILE.jsonl] [--url http://127.0.0.1:8000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from rm_core import Encoded, ModelConfig, Reward, RewardScorer
from rm_core.verification import sample_conversations
from serve.clients import ScoringClient
from serve.jobs.records import parse_record

Conversations = list[list[dict[str, Any]]]
BATCH = 8


def read(path: Path | None) -> Conversations:
    """Conversations of a job file, or both answers of every sample pair."""
    if path is None:
        return [messages for _, messages in sample_conversations()]
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [c for r in records for c in parse_record(r).conversations if isinstance(c, list)]


def matrix_rate(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product, best of five."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def plain(scorer: RewardScorer, attention: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        scorer.loaded.checkpoint.path, dtype=torch.float32, attn_implementation=attention
    ).eval()


@torch.inference_mode()
def one_by_one(model: Any, sequences: list[tuple[int, ...]]) -> None:
    for sequence in sequences:
        model(input_ids=torch.tensor([sequence]))


@torch.inference_mode()
def padded(model: Any, sequences: list[tuple[int, ...]]) -> None:
    pad = model.config.pad_token_id
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), BATCH):
        rows = ordered[start : start + BATCH]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        model(input_ids=ids, attention_mask=(ids != pad).long())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a job file; default: the sample pairs")
    parser.add_argument("--url", help="a running service with the same model")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    conversations = read(options.data)
    scorer = RewardScorer.load(ModelConfig(options.model, device="cpu", dtype="float32"))
    encoded = [e for e in scorer.encoder.encode_all(conversations) if isinstance(e, Encoded)]
    sequences = [e.input_ids for e in encoded]
    tokens = sum(map(len, sequences))
    eager, sdpa = plain(scorer, "eager"), None
    if scorer.fingerprint.attention == "sdpa":
        sdpa = plain(scorer, "sdpa")
    ways: dict[str, Callable[[], object]] = {
        "skyreward in process": lambda: scorer.score_ids(sequences),
        "one by one, eager": lambda: one_by_one(eager, sequences),
    }
    if sdpa is not None:
        ways["one by one, SDPA"] = lambda: one_by_one(sdpa, sequences)
        ways["padded batches of 8, SDPA, sorted"] = lambda: padded(sdpa, sequences)
    if options.url:
        client = ScoringClient(options.url)
        assert all(isinstance(r, Reward) for r in client.score(conversations))
        ways["skyreward over HTTP"] = lambda: client.score(conversations)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    rate = matrix_rate()
    print(f"{len(sequences)} conversations, {tokens} tokens, matrix product {rate:.0f} GFLOP/s")
    for name, value in rates.items():
        ratio = value / rates["one by one, eager"]
        print(f"{name:36} {value:9.0f} tokens/s  {ratio:5.2f} x one by one, eager")
    print(json.dumps({"tokens": tokens, "tokens_per_s": rates, "matrix_gflops": rate}))


if __name__ == "__main__":
    main()
