"""How many tokens a batch may have, from the memory that is free and the shape of the model.

An estimate, for the layer that needs most; `RewardScorer.warm_up` proves it on CUDA by running the
largest batch that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rm_core.packing import PrefixTree, pack

# Tokens from which on larger batches are not faster. CPUs: measured on two cores, where 2,048 to
# 4,096 tokens were best on pairs and 4,096 on groups (larger rows fall out of the caches); CUDA:
# not measured, chosen so that launches no longer count.
CPU_TOKENS = 4_096
CUDA_TOKENS = 32_768
# A row of one conversation costs as much as a full one in the batch-invariant mode.
DETERMINISTIC_CPU_TOKENS = 1_024
DETERMINISTIC_CUDA_TOKENS = 8_192
FEWEST_TOKENS = 256
# Of the memory that is free after loading; the rest is for fragments and the kernels' own needs.
_USABLE = 0.8
# Keys and values are gathered once per layer; what a prefix shares is repeated for every run that
# hangs on it, here taken as this many times the row. A batch that needs more is halved.
_REPEATS = 8


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Most tokens of a batch, and how that came about.

    Attributes:
        max_batch_tokens: the limit.
        reason: for people.
        chosen: whether it was chosen here, and may be lowered by the warm-up.
    """

    max_batch_tokens: int
    reason: str
    is_automatic: bool


def estimate_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Peak memory of the activations that one more token of a row costs, in bytes.

    Args:
        config: of transformers, with the shape of the decoder.
        dtype: of the decoder.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    # The residual, its normed copy, and two float32 copies inside the norm.
    stream = 2 * hidden * dtype.itemsize + 2 * hidden * 4
    in_mlp = 3 * mlp * dtype.itemsize
    in_attention = (4 * queries + (4 + 2 * _REPEATS) * keys) * dtype.itemsize
    return int(stream + max(in_mlp, in_attention))


def choose_budget(
    requested: int | None,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool = False,
) -> BatchBudget:
    """The batch budget of a model that is loaded on its device.

    Args:
        requested: the setting; None to choose.
        config: of transformers.
        dtype: of the decoder.
        device: where the model is.
        deterministic: whether every row is filled up to the budget.
    """
    if requested is not None:
        return BatchBudget(
            requested, "asked for by the setting `max_batch_tokens`", is_automatic=False
        )
    if device.type != "cuda":
        tokens = DETERMINISTIC_CPU_TOKENS if deterministic else CPU_TOKENS
        return BatchBudget(tokens, "larger rows were not faster on CPUs", is_automatic=True)
    free, _ = torch.cuda.mem_get_info(device)
    return fit_budget(free, config, dtype, deterministic)


def fit_budget(
    free_bytes: int, config: Any, dtype: torch.dtype, deterministic: bool = False
) -> BatchBudget:
    """The batch budget of a CUDA device, from what is free there once the model is loaded.

    Args:
        free_bytes: on the device.
        config: of transformers, or anything with the same sizes.
        dtype: of the decoder.
        deterministic: whether every row is filled up to the budget.
    """
    most = DETERMINISTIC_CUDA_TOKENS if deterministic else CUDA_TOKENS
    fitting = int(free_bytes * _USABLE) // estimate_bytes_per_token(config, dtype)
    reason = f"{free_bytes / 2**30:.1f} GiB free after loading hold {fitting} tokens"
    if fitting >= most:
        return BatchBudget(most, f"{reason}; larger rows are not faster", is_automatic=True)
    return BatchBudget(max(FEWEST_TOKENS, fitting // 256 * 256), reason, is_automatic=True)


def halve(budget: BatchBudget) -> BatchBudget:
    """After the warm-up ran out of memory with it."""
    tokens = max(1, budget.max_batch_tokens // 2)
    reason = f"a batch of {budget.max_batch_tokens} tokens did not fit at the warm-up"
    return BatchBudget(tokens, reason, is_automatic=True)


def build_full_batch(num_tokens: int, max_length: int) -> PrefixTree:
    """A batch of that many tokens, of conversations as long as they may be, nothing shared."""
    lengths = [min(max_length, num_tokens - start) for start in range(0, num_tokens, max_length)]
    (tree,) = pack([(index,) * length for index, length in enumerate(lengths)], num_tokens).batches
    return tree
