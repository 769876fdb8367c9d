"""Runs a packed row through the model: one batch in, one raw float32 logit per sequence out.

Nothing is padded, and a shared prefix is encoded once: transformers' decoder runs on the tree's row
as it is, with each token's position in its conversation, and attention limits each token to its own
conversation. The head is applied in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from rm_core.attention import (
    PackedAttention,
    build_segments,
    build_token_segments,
    run_packed_attention,
)
from rm_core.compilation import compile_for_all_sizes
from rm_core.model.loading import LoadedModel
from rm_core.model.precision import use_ieee_products
from rm_core.packing import PrefixTree
from rm_core.prefix_cache import CachedBatch

ForwardPass: TypeAlias = Callable[[LoadedModel, PrefixTree, int, CachedBatch | None], list[float]]
"""A function with the arguments and the result of `forward_batch`."""


@use_ieee_products()
@torch.inference_mode()
def forward_batch(
    loaded_model: LoadedModel,
    tree: PrefixTree,
    row_multiple: int = 1,
    cached: CachedBatch | None = None,
) -> list[float]:
    """Return the raw logits of a batch, in the order of its sequences.

    Args:
        loaded_model: the model.
        tree: the batch; each sequence is read at its last token.
        row_multiple: the row is padded to a multiple of this many tokens, for the mode that needs
            a fixed shape; the padding is not read.
        cached: the batch's part of the prefix cache, whose tree is `tree`; None without a cache.

    Returns:
        `[num_sequences]` logits; NaN and infinity are returned unchanged.
    """
    is_compiled = loaded_model.compilation.is_compiled
    with compile_for_all_sizes() if is_compiled else contextlib.nullcontext():
        hidden = _compute_hidden_states(loaded_model, tree, -tree.num_tokens % row_multiple, cached)
    # One product per conversation: in a product of matrices the last bits of a row depend on the
    # number of other rows, and a reward must not depend on its neighbors.
    logits = torch.stack([row.float() @ loaded_model.head[0] for row in hidden]).tolist()
    logit_at = dict(zip(sorted(tree.ends), logits, strict=True))
    return [logit_at[end] for end in tree.ends]


def _compute_hidden_states(
    loaded_model: LoadedModel,
    tree: PrefixTree,
    num_padding_tokens: int,
    cached: CachedBatch | None,
) -> torch.Tensor:
    """Return hidden states `[num_sequences, hidden_size]` after the final norm, in row order.

    Attention is planned once, without the padding tokens.
    """
    decoder: Any = loaded_model.model.get_submodule(loaded_model.model.base_model_prefix)
    device = loaded_model.device
    readout_indices = sorted(tree.ends)
    stages = [
        (stage, _build_packed_attention(loaded_model, tree, readout_indices, stage, cached))
        for stage in loaded_model.devices
    ]
    with run_packed_attention(stages):
        hidden: torch.Tensor = decoder(
            input_ids=_build_row(_iter_token_ids(tree), num_padding_tokens).to(
                device, non_blocking=True
            ),
            position_ids=_build_row(_iter_positions(tree), num_padding_tokens).to(
                device, non_blocking=True
            ),
            use_cache=False,
        ).last_hidden_state[0]
    if not loaded_model.deterministic:
        return hidden
    return hidden[torch.tensor(readout_indices).to(hidden.device)]


def _build_packed_attention(
    loaded_model: LoadedModel,
    tree: PrefixTree,
    readout_indices: list[int],
    device: torch.device,
    cached: CachedBatch | None,
) -> PackedAttention:
    plan = loaded_model.backend.plan(build_segments(tree), tree.num_keys, device)
    packed = PackedAttention(loaded_model.backend, plan, tree.num_tokens, tree.num_tokens, cached)
    if loaded_model.deterministic:  # shapes must not depend on the number of readouts
        return packed
    plan = loaded_model.backend.plan(
        build_token_segments(tree, readout_indices), tree.num_keys, device
    )
    readouts = torch.tensor(readout_indices).to(device, non_blocking=True)
    return replace(packed, readouts=readouts, readout_plan=plan)


def _build_row(values: Iterator[int], num_padding_tokens: int) -> torch.Tensor:
    return torch.tensor([[*values, *[0] * num_padding_tokens]], dtype=torch.long)


def _iter_token_ids(tree: PrefixTree) -> Iterator[int]:
    return (token for segment in tree.row_segments for token in segment.token_ids)


def _iter_positions(tree: PrefixTree) -> Iterator[int]:
    return (
        segment.depth + index
        for segment in tree.row_segments
        for index in range(len(segment.token_ids))
    )
