"""Token budget of batches, from free memory and the shape of the model.

The budget is an estimate for the layer that needs the most memory. On CUDA, `RewardScorer.warm_up`
verifies the estimate by running the largest allowed batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rm_core.packing import PrefixTree, pack

# Batch sizes in tokens beyond which batches are not faster. CPU: measured on two cores, where 2,048
# to 4,096 tokens were best for pairs and 4,096 for groups (larger rows exceed the CPU caches).
# CUDA: not measured, chosen so that the overhead of kernel launches is negligible.
CPU_TOKENS = 4_096
CUDA_TOKENS = 32_768
# In batch-invariant mode a row of one conversation costs as much as a full row.
DETERMINISTIC_CPU_TOKENS = 1_024
DETERMINISTIC_CUDA_TOKENS = 8_192
FEWEST_TOKENS = 256
# Share of the memory that is free after loading. The rest is for fragmentation and for kernels.
_USABLE = 0.8
# Keys and values are gathered once per layer, and those of a shared prefix are repeated for every
# segment that continues it. Assumed size of the gathered keys, as a multiple of the row. A batch
# that needs more memory is split in half.
_REPEATS = 8


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Maximum number of tokens in a batch, and the reason for it.

    Attributes:
        max_batch_tokens: the limit.
        reason: explanation of the limit, for people.
        is_automatic: whether the limit was chosen by this module. The warm-up may lower only such
            limits.
    """

    max_batch_tokens: int
    reason: str
    is_automatic: bool


def estimate_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Estimate the peak memory of activations per token of a row, in bytes.

    Args:
        config: transformers config with the shape of the decoder.
        dtype: dtype of the decoder.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    # The residual, its normalized copy, and two float32 copies inside the norm.
    residual = 2 * hidden * dtype.itemsize + 2 * hidden * 4
    in_mlp = 3 * mlp * dtype.itemsize
    in_attention = (4 * queries + (4 + 2 * _REPEATS) * keys) * dtype.itemsize
    return int(residual + max(in_mlp, in_attention))


def choose_budget(
    requested: int | None,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool = False,
) -> BatchBudget:
    """Return the batch budget of a model that is loaded on its device.

    Args:
        requested: value of the setting `max_batch_tokens`; None to choose a budget.
        config: transformers config with the shape of the decoder.
        dtype: dtype of the decoder.
        device: device of the model.
        deterministic: whether every row is padded to the budget.
    """
    if requested is not None:
        return BatchBudget(
            requested, "requested by the setting `max_batch_tokens`", is_automatic=False
        )
    if device.type != "cuda":
        tokens = DETERMINISTIC_CPU_TOKENS if deterministic else CPU_TOKENS
        return BatchBudget(tokens, "larger rows were not faster on CPUs", is_automatic=True)
    free, _ = torch.cuda.mem_get_info(device)
    return fit_budget(free, config, dtype, deterministic)


def fit_budget(
    free_bytes: int, config: Any, dtype: torch.dtype, deterministic: bool = False
) -> BatchBudget:
    """Return the batch budget of a CUDA device.

    Args:
        free_bytes: free memory of the device once the model is loaded.
        config: transformers config, or any object with the same sizes.
        dtype: dtype of the decoder.
        deterministic: whether every row is padded to the budget.
    """
    max_tokens = DETERMINISTIC_CUDA_TOKENS if deterministic else CUDA_TOKENS
    fitting = int(free_bytes * _USABLE) // estimate_bytes_per_token(config, dtype)
    reason = f"{free_bytes / 2**30:.1f} GiB free after loading hold {fitting} tokens"
    if fitting >= max_tokens:
        return BatchBudget(max_tokens, f"{reason}; larger rows are not faster", is_automatic=True)
    return BatchBudget(max(FEWEST_TOKENS, fitting // 256 * 256), reason, is_automatic=True)


def halve(budget: BatchBudget) -> BatchBudget:
    """Return half of a budget with which the warm-up ran out of memory."""
    tokens = max(1, budget.max_batch_tokens // 2)
    reason = f"a batch of {budget.max_batch_tokens} tokens did not fit during the warm-up"
    return BatchBudget(tokens, reason, is_automatic=True)


def build_full_batch(num_tokens: int, max_length: int) -> PrefixTree:
    """Build a batch of `num_tokens` tokens from sequences of up to `max_length`, none shared."""
    lengths = [min(max_length, num_tokens - start) for start in range(0, num_tokens, max_length)]
    (tree,) = pack([(index,) * length for index, length in enumerate(lengths)], num_tokens).batches
    return tree
