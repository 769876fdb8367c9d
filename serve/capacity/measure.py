"""Measurement of a model's rate and memory on the local device: `skyreward plan --measure`.

Scores random token ids with the engine, without HTTP and queueing. The lengths are those of the
load.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

import torch

from rm_core import ModelConfig, RewardScorer
from rm_core.packing import TokenIds
from serve.capacity.replica import RUNTIME_BYTES, Load, Memory, Rate

_ROUNDS = 3
_MIN_TOKEN_ID = 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement on the local device."""

    device: str  # name of the device
    rate: Rate  # rate of full batches
    memory: Memory  # memory of the device, with the measured peak of a batch


def measure(config: ModelConfig, load: Load) -> Measurement:
    """Load a model, which has to be available locally, and measure its rate and memory."""
    scorer = RewardScorer.load(config)
    is_cuda = scorer.loaded_model.device.type == "cuda"
    if is_cuda:
        scorer.warm_up(largest_batch=True)
        torch.cuda.reset_peak_memory_stats(scorer.loaded_model.device)
    else:
        scorer.warm_up()
    budget = scorer.describe().max_batch_tokens
    rng = random.Random(0)
    vocab_size = int(scorer.loaded_model.model.config.vocab_size)
    num_groups = max(1, budget // load.group_tokens)
    groups = [_sample_group(rng, load, vocab_size) for _ in range(num_groups)]
    seconds, num_tokens = _time_batch(scorer, [ids for group in groups for ids in group])
    return Measurement(
        device=torch.cuda.get_device_name(scorer.loaded_model.device) if is_cuda else "CPU",
        rate=Rate(
            tokens_per_s=num_tokens / seconds,
            low=num_tokens / seconds,
            high=num_tokens / seconds,
            status="measured",
            note=f"{num_tokens} distinct tokens in {seconds:.3f} s, median of {_ROUNDS}",
        ),
        memory=_measure_memory(scorer, budget),
    )


def _sample_group(rng: random.Random, load: Load, vocab_size: int) -> list[TokenIds]:
    prompt = _sample_ids(rng, load.prompt_tokens, vocab_size)
    return [
        prompt + _sample_ids(rng, load.response_tokens, vocab_size) for _ in range(load.group_size)
    ]


def _sample_ids(rng: random.Random, num_tokens: int, vocab_size: int) -> TokenIds:
    return tuple(rng.choices(range(_MIN_TOKEN_ID, vocab_size), k=num_tokens))


def _time_batch(scorer: RewardScorer, sequences: list[TokenIds]) -> tuple[float, int]:
    """Return the median seconds and the distinct tokens of a batch, after a warm-up round."""
    times = []
    scored = scorer.score_ids(sequences)
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        scored = scorer.score_ids(sequences)  # synchronous, since it copies the rewards to the host
        times.append(time.perf_counter() - start)
    return statistics.median(times), scored.num_computed_tokens


def _measure_memory(scorer: RewardScorer, budget: int) -> Memory:
    model, device = scorer.loaded_model.model, scorer.loaded_model.device
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    reason = scorer.describe().max_batch_tokens_reason
    if device.type != "cuda":
        return Memory(0, weights_bytes, 0, 0, budget, reason)
    _, total_bytes = torch.cuda.mem_get_info(device)
    peak_bytes = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return Memory(total_bytes, weights_bytes, RUNTIME_BYTES, peak_bytes, budget, reason)
