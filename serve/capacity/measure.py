"""What the device at hand does with a model and a load's lengths: `skyreward plan --measure`.

Random token ids, so what they say does not matter; the engine as it serves, without HTTP and
queue. Loads the checkpoint, or, where its weights are not at hand, says so.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

import torch

from rm_core import ModelConfig, RewardScorer
from rm_core.packing import TokenIds
from serve.capacity.load import Load
from serve.capacity.replica import RUNTIME_BYTES, Memory, Rate
from serve.errors import PlanError

_ROUNDS = 3
_SMALLEST_ID = 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of the device at hand.

    Attributes:
        device: its name.
        rate: of full batches, and of the smallest one.
        memory: of the device, with what was really taken.
    """

    device: str
    rate: Rate
    memory: Memory


def measure(config: ModelConfig, load: Load) -> Measurement:
    """Load a model here and time it.

    Raises:
        ModelLoadError: it is not at hand, or refused.
        PlanError: a conversation of the load is longer than the model takes.
    """
    scorer = RewardScorer.load(config)
    limit = scorer.encoder.max_length
    if load.conversation_tokens > limit:
        raise PlanError(f"{load.conversation_tokens} tokens are more than the model takes: {limit}")
    cuda = scorer.loaded_model.device.type == "cuda"
    if cuda:
        scorer.warm_up(largest_batch=True)
        torch.cuda.reset_peak_memory_stats(scorer.loaded_model.device)
    else:
        scorer.warm_up()
    budget = int(scorer.describe()["max_batch_tokens"])
    source = random.Random(0)
    vocab = int(scorer.loaded_model.model.config.vocab_size)
    full = [_sample_group(source, load, vocab) for _ in range(max(1, budget // load.group_tokens))]
    seconds, tokens = _time_batch(scorer, [ids for group in full for ids in group])
    floor_s, _ = _time_batch(scorer, [_sample_ids(source, 1, vocab)])
    return Measurement(
        device=torch.cuda.get_device_name(scorer.loaded_model.device) if cuda else "CPU",
        rate=Rate(
            tokens_per_s=tokens / seconds,
            low=tokens / seconds,
            high=tokens / seconds,
            batch_floor_s=floor_s,
            status="measured",
            note=f"{tokens} distinct tokens in {seconds:.3f} s, median of {_ROUNDS}",
        ),
        memory=_measure_memory(scorer, budget),
    )


def _sample_group(source: random.Random, load: Load, vocab: int) -> list[TokenIds]:
    prompt = _sample_ids(source, load.prompt_tokens, vocab)
    return [
        prompt + _sample_ids(source, load.response_tokens, vocab) for _ in range(load.group_size)
    ]


def _sample_ids(source: random.Random, number: int, vocab: int) -> TokenIds:
    return tuple(source.choices(range(_SMALLEST_ID, vocab), k=number))


def _time_batch(scorer: RewardScorer, sequences: list[TokenIds]) -> tuple[float, int]:
    """Median seconds, and distinct tokens, after a round that does not count."""
    times = []
    scored = scorer.score_ids(sequences)
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        scored = scorer.score_ids(sequences)  # rewards are read back, so the device is done
        times.append(time.perf_counter() - start)
    return statistics.median(times), scored.num_computed_tokens


def _measure_memory(scorer: RewardScorer, budget: int) -> Memory:
    model, device = scorer.loaded_model.model, scorer.loaded_model.device
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    reason = str(scorer.describe()["max_batch_tokens_reason"])
    if device.type != "cuda":
        return Memory(0, weights, 0, 0, budget, reason)
    _, total = torch.cuda.mem_get_info(device)
    taken = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return Memory(total, weights, RUNTIME_BYTES, taken, budget, reason)
