"""A packed row through the model: one batch in, one raw float32 logit per sequence out.

Nothing is padded and nothing shared is encoded twice: the decoder of transformers runs on the row
of the tree as it is, with the positions that each token has in its conversation, and attention
sees to it that a token looks at its own conversation only. The head is applied in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rm_core.attention import PackedAttention, build_segments, build_token_segments
from rm_core.compilation import compile_for_all_sizes
from rm_core.model.loading import LoadedModel
from rm_core.model.precision import use_ieee_products
from rm_core.packing import PrefixTree


@use_ieee_products()
@torch.inference_mode()
def forward_batch(
    loaded_model: LoadedModel, tree: PrefixTree, row_multiple: int = 1
) -> list[float]:
    """Raw logits of a batch, in the order of its sequences.

    Args:
        loaded: the model.
        tree: the batch; each sequence is read at its last token.
        row_multiple: the row is filled up to a multiple of this many tokens, which are not read;
            for the mode that wants one shape.

    Returns:
        `[num_sequences]` logits; NaN and infinity are passed on as they are.
    """
    with compile_for_all_sizes() if loaded_model.compiled else contextlib.nullcontext():
        hidden = _compute_hidden_states(loaded_model, tree, -tree.num_tokens % row_multiple)
    # One product per conversation: in a product of matrices the last bits of a row depend on how
    # many others there are, and a reward must not depend on its neighbours.
    logits = torch.stack([row.float() @ loaded_model.head[0] for row in hidden]).tolist()
    logit_at = dict(zip(sorted(tree.ends), logits, strict=True))
    return [logit_at[end] for end in tree.ends]


def _compute_hidden_states(
    loaded_model: LoadedModel, tree: PrefixTree, filling: int
) -> torch.Tensor:
    """Hidden states `[num_sequences, hidden_size]` after the final norm, in the order of the row.

    Attention is planned once and knows nothing of the filling.
    """
    decoder: Any = loaded_model.model.get_submodule(loaded_model.model.base_model_prefix)
    device = loaded_model.device
    places = sorted(tree.ends)
    packed = tuple(
        _build_packed_attention(loaded_model, tree, places, on) for on in loaded_model.devices
    )
    hidden: torch.Tensor = decoder(
        input_ids=_build_row(_iter_token_ids(tree), filling).to(device, non_blocking=True),
        position_ids=_build_row(_iter_positions(tree), filling).to(device, non_blocking=True),
        use_cache=False,
        # Of several devices, each layer takes its own; see `rm_core.model.pipeline`.
        packed=packed[0] if len(packed) == 1 else packed,
    ).last_hidden_state[0]
    return hidden[torch.tensor(places).to(hidden.device)] if loaded_model.deterministic else hidden


def _build_packed_attention(
    loaded_model: LoadedModel, tree: PrefixTree, readout_indices: list[int], device: torch.device
) -> PackedAttention:
    plan = loaded_model.backend.plan(build_segments(tree), tree.num_tokens, device)
    packed = PackedAttention(loaded_model.backend, plan, tree.num_tokens, tree.num_tokens)
    if loaded_model.deterministic:  # shapes must not depend on the number of readouts
        return packed
    plan = loaded_model.backend.plan(
        build_token_segments(tree, readout_indices), tree.num_tokens, device
    )
    readouts = torch.tensor(readout_indices).to(device, non_blocking=True)
    return replace(packed, readouts=readouts, readout_plan=plan)


def _build_row(values: Iterator[int], filling: int) -> torch.Tensor:
    return torch.tensor([[*values, *[0] * filling]], dtype=torch.long)


def _iter_token_ids(tree: PrefixTree) -> Iterator[int]:
    return (token for run in tree.segments for token in run.token_ids)


def _iter_positions(tree: PrefixTree) -> Iterator[int]:
    return (run.depth + index for run in tree.segments for index in range(len(run.token_ids)))
