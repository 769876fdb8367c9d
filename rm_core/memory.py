"""Token budget of batches and size of the prefix cache, from free memory and the model's shape.

The budget is an estimate for the layer that needs the most memory. On CUDA, `RewardScorer.warm_up`
verifies the estimate by running the largest allowed batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.attention.varlen import MAX_KEY_REPEATS
from rm_core.model.decoder import get_head_dim, get_num_key_value_heads
from rm_core.packing import PrefixTree, pack

# Batch sizes in tokens beyond which batches are not faster. CPU: measured on two cores, where 2,048
# to 4,096 tokens were best for pairs and 4,096 for groups (larger rows exceed the CPU caches).
# CUDA: enough to keep the device busy between batches of a small model.
CPU_TOKENS = 4_096
CUDA_TOKENS = 65_536
# In batch-invariant mode a row of one conversation costs as much as a full row.
DETERMINISTIC_CPU_TOKENS = 1_024
DETERMINISTIC_CUDA_TOKENS = 8_192
FEWEST_TOKENS = 256
# Operations of the linear layers in a batch on CUDA. A conversation that arrives alone waits for up
# to two batches; an H200 takes about 0.4 s for so many (estimated from its data sheet).
CUDA_OPERATIONS = 2.4e14
# Share of the memory that is free after loading. The rest is for fragmentation and for kernels.
_USABLE = 0.8
# Size of an automatic prefix cache: a share of the memory that is left, and so many full batches,
# since prompts recur within minutes or not at all.
_PREFIX_CACHE_SHARE = {"cuda": 0.5, "cpu": 0.125}
_PREFIX_CACHE_BATCHES = 64
# A container may have less memory than its machine has free.
_MAX_CPU_PREFIX_CACHE_BYTES = 2 * 2**30
# Size of an automatic cache of image embeddings: a share of the memory that is left, and so many
# images of the largest size. An embedding is asked for again within minutes or not at all, as a
# prompt is, but takes less memory than the keys and values of the prompt.
_VISION_CACHE_SHARE = {"cuda": 0.05, "cpu": 0.02}
_VISION_CACHE_IMAGES = 256


@dataclass(frozen=True, slots=True)
class PrefixCacheSize:
    """Size of the prefix cache, and the reason for it."""

    num_tokens: int  # maximum number of tokens in the cache; 0 if there is none
    num_bytes: int  # memory of that many tokens, over all devices
    reason: str  # explanation of the size, for people


@dataclass(frozen=True, slots=True)
class VisionCacheSize:
    """Size of the cache of image embeddings, and the reason for it."""

    num_bytes: int  # maximum memory of the embeddings in the cache; 0 if there is none
    reason: str  # explanation of the size, for people


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Maximum number of tokens in a batch, and the reason for it."""

    max_batch_tokens: int
    reason: str  # explanation of the limit, for people
    # Whether the limit was chosen by this module. The warm-up may lower only such limits.
    is_automatic: bool


def estimate_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Estimate the peak memory of activations per token of a row, in bytes."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    head_dim = get_head_dim(config)
    queries = config.num_attention_heads * head_dim
    keys = get_num_key_value_heads(config) * head_dim
    # The residual, its normalized copy, and two float32 copies inside the norm.
    residual = 2 * hidden * dtype.itemsize + 2 * hidden * 4
    in_mlp = 3 * mlp * dtype.itemsize
    in_attention = (4 * queries + (4 + 2 * MAX_KEY_REPEATS) * keys) * dtype.itemsize
    return int(residual + max(in_mlp, in_attention))


def count_operations_per_token(config: Any) -> int:
    """Count the operations of the decoder's linear layers for one token."""
    head_dim = get_head_dim(config)
    heads = 2 * config.num_attention_heads + 2 * get_num_key_value_heads(config)
    weights = config.hidden_size * (heads * head_dim + 3 * config.intermediate_size)
    return int(2 * config.num_hidden_layers * weights)


def compute_key_value_bytes(config: Any, dtype: torch.dtype) -> int:
    """Compute the memory of one token's keys and values in all layers, in bytes."""
    per_layer = 2 * get_num_key_value_heads(config) * get_head_dim(config) * dtype.itemsize
    return int(config.num_hidden_layers * per_layer)


def estimate_tower_bytes(config: Any, dtype: torch.dtype, num_patches: int) -> int:
    """Estimate the peak memory of a vision tower while it encodes images, in bytes.

    Attention is counted as a kernel that stores no matrix of [patches, patches].
    """
    # Qwen2-VL calls the width of its layers embed_dim, and that of the decoder hidden_size.
    width = getattr(config, "embed_dim", None) or config.hidden_size
    mlp = getattr(config, "intermediate_size", None) or width * config.mlp_ratio
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    size = dtype.itemsize
    # The pixels once in float32 and once in the tower's dtype, the residual, its normalized copy
    # and two float32 copies inside the norm.
    residual = pixels * (4 + size) + 2 * width * size + 2 * width * 4
    # Queries, keys and values as they are, in float32 while they are rotated, and split by window.
    in_attention = 3 * width * size + 6 * width * 4 + 4 * width * size
    in_mlp = 3 * mlp * size
    per_patch = residual + max(in_attention, in_mlp)
    num_kept = count_deepstack_layers(config)
    per_token = num_kept * config.out_hidden_size * size if num_kept else 0
    return int(num_patches * (per_patch + per_token / config.spatial_merge_size**2))


def count_deepstack_layers(config: Any) -> int:
    """Count the layers of a vision tower, before its last, that return features too (Qwen3-VL)."""
    return len(getattr(config, "deepstack_visual_indexes", ()))


def compute_image_bytes(config: Any, dtype: torch.dtype, max_pixels: int) -> int:
    """Compute the memory of the embeddings of an image of `max_pixels`, in bytes."""
    vision = config.vision_config
    num_tokens = max_pixels // (vision.patch_size * vision.spatial_merge_size) ** 2
    per_token = (1 + count_deepstack_layers(vision)) * config.get_text_config().hidden_size
    return int(num_tokens * per_token * dtype.itemsize)


def choose_vision_cache_bytes(
    requested: int | None,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    max_pixels: int,
    reserved_bytes: int,
) -> VisionCacheSize:
    """Return the size of the cache of image embeddings of a model that is loaded on its devices.

    `requested` is the setting `vision_cache_bytes`. A batch and the tower take `reserved_bytes`,
    and `max_pixels` is the largest resized image.
    """
    if requested is not None:
        return VisionCacheSize(requested, "requested by the setting `vision_cache_bytes`")
    share = _VISION_CACHE_SHARE[device.type]
    free = max(0, _get_free_bytes(device) - reserved_bytes)
    limits = {
        f"{share:.1%} of the {free / 2**30:.1f} GiB that weights and a batch leave free": int(
            free * share
        ),
        f"{_VISION_CACHE_IMAGES} images of the largest size": (
            _VISION_CACHE_IMAGES * compute_image_bytes(config, dtype, max_pixels)
        ),
    }
    reason, num_bytes = min(limits.items(), key=lambda limit: limit[1])
    return VisionCacheSize(num_bytes, reason)


def choose_prefix_cache_size(
    requested: int | None,
    config: Any,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    max_batch_tokens: int,
    reserved_bytes: int = 0,
) -> PrefixCacheSize:
    """Return the size of the prefix cache of a model that is loaded on its devices.

    `requested` is the setting `prefix_cache_bytes`. The devices have an equal number of layers
    each; others, such as a vision tower, take `reserved_bytes` of the first.
    """
    per_token = compute_key_value_bytes(config, dtype)
    if requested is not None:
        reason = "requested by the setting `prefix_cache_bytes`"
        num_tokens = requested // per_token
    else:
        in_batch = max_batch_tokens * estimate_bytes_per_token(config, dtype)
        share = _PREFIX_CACHE_SHARE[devices[0].type]
        reserved = [reserved_bytes] + [0] * (len(devices) - 1)
        free = min(
            _get_free_bytes(device) - taken for device, taken in zip(devices, reserved, strict=True)
        )
        free -= in_batch
        limits = {
            f"{share:.1%} of the {free / 2**30:.1f} GiB that weights and a batch leave free": max(
                0, int(free * share * len(devices)) // per_token
            ),
            f"prompts of {_PREFIX_CACHE_BATCHES} full batches": (
                _PREFIX_CACHE_BATCHES * max_batch_tokens
            ),
        }
        if devices[0].type == "cpu":
            limits["2 GiB, the maximum on a CPU"] = _MAX_CPU_PREFIX_CACHE_BYTES // per_token
        reason, num_tokens = min(limits.items(), key=lambda limit: limit[1])
    return PrefixCacheSize(num_tokens, num_tokens * per_token, reason)


def _get_free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_budget(
    requested: int | None,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool = False,
    reserved_bytes: int = 0,
) -> BatchBudget:
    """Return the batch budget of a model that is loaded on its device.

    `requested` is the setting `max_batch_tokens`. If `deterministic`, every row is padded to the
    budget. Others, such as a vision tower, take `reserved_bytes` of the device.
    """
    if requested is not None:
        return BatchBudget(
            requested, "requested by the setting `max_batch_tokens`", is_automatic=False
        )
    if device.type != "cuda":
        tokens = DETERMINISTIC_CPU_TOKENS if deterministic else CPU_TOKENS
        return BatchBudget(tokens, "larger rows were not faster on CPUs", is_automatic=True)
    free, _ = torch.cuda.mem_get_info(device)
    return fit_budget(max(0, free - reserved_bytes), config, dtype, deterministic)


def fit_budget(
    free_bytes: int, config: Any, dtype: torch.dtype, deterministic: bool = False
) -> BatchBudget:
    """Return the batch budget of a CUDA device with `free_bytes` once the model is loaded.

    The config may be any object with the sizes of transformers' config.
    """
    max_tokens = DETERMINISTIC_CUDA_TOKENS if deterministic else CUDA_TOKENS
    quick_tokens = int(CUDA_OPERATIONS / count_operations_per_token(config)) // 1024 * 1024
    if quick_tokens < max_tokens:
        max_tokens = max(1024, quick_tokens)
        limit = "larger rows would make lone requests wait"
    else:
        limit = "larger rows are not faster"
    fitting = int(free_bytes * _USABLE) // estimate_bytes_per_token(config, dtype)
    reason = f"{free_bytes / 2**30:.1f} GiB free after loading hold {fitting} tokens"
    if fitting >= max_tokens:
        return BatchBudget(max_tokens, f"{reason}; {limit}", is_automatic=True)
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
