"""What a workload needs, and what the machine can give: the limit that every way is held against.

The limit is the machine's own rate of a large matrix product. What a workload needs is counted for
its distinct tokens alone, each prompt once however many responses follow it: two operations per
weight of the decoder's linear layers, and four per head, head dimension and earlier position for
attention. Nothing is taken off for what an engine may leave out in the last layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rm_core import pack
from rm_core.model.decoder import get_decoder_layers
from rm_core.packing import TokenIds

_ANY_NUMBER = 2**62


@dataclass(frozen=True, slots=True)
class Need:
    """What a workload consists of.

    Attributes:
        conversations: how many.
        tokens: of all conversations, shared or not; what tokens/s are counted in.
        distinct_tokens: of the prefix tree of all conversations.
        longest: tokens of the longest conversation.
        operations: floating-point operations of the decoder on the distinct tokens.
    """

    conversations: int
    tokens: int
    distinct_tokens: int
    longest: int
    operations: float


def need_of(sequences: Sequence[TokenIds], model: PreTrainedModel) -> Need:
    """Count a workload, given as token ids, for a model."""
    (tree,) = pack(sequences, _ANY_NUMBER).batches
    lengths = [len(sequence) for sequence in sequences]
    positions = sum(run.depth + i + 1 for run in tree.segments for i in range(len(run.token_ids)))
    config = model.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 4 * heads * head_dim * positions * config.num_hidden_layers
    return Need(
        conversations=len(lengths),
        tokens=sum(lengths),
        distinct_tokens=tree.num_tokens,
        longest=max(lengths),
        operations=2 * _linear_weights(model) * tree.num_tokens + attention,
    )


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations per second of a square matrix product, the best of three."""
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):  # the first one is not better than the others, so it may take part
        _wait_for(device)
        started = time.perf_counter()
        left @ right
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _linear_weights(model: PreTrainedModel) -> int:
    linear = (m for m in get_decoder_layers(model).modules() if isinstance(m, torch.nn.Linear))
    return sum(module.weight.numel() for module in linear)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
