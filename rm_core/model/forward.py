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

from rm_core.attention import PackedAttention, of_runs, of_tokens
from rm_core.compilation import compile_for_all_sizes
from rm_core.model.loading import LoadedModel
from rm_core.model.precision import ieee_products
from rm_core.packing import Tree


@ieee_products()
@torch.inference_mode()
def forward_batch(loaded: LoadedModel, tree: Tree, row_multiple: int = 1) -> list[float]:
    """Raw logits of a batch, in the order of its sequences.

    Args:
        loaded: the model.
        tree: the batch; each sequence is read at its last token.
        row_multiple: the row is filled up to a multiple of this many tokens, which are not read;
            for the mode that wants one shape.

    Returns:
        `[num_sequences]` logits; NaN and infinity are passed on as they are.
    """
    with compile_for_all_sizes() if loaded.compiled else contextlib.nullcontext():
        hidden = _hidden_states(loaded, tree, -tree.num_tokens % row_multiple)
    # One product per conversation: in a product of matrices the last bits of a row depend on how
    # many others there are, and a reward must not depend on its neighbours.
    logits = torch.stack([row.float() @ loaded.head[0] for row in hidden]).tolist()
    logit_at = dict(zip(sorted(tree.ends), logits, strict=True))
    return [logit_at[end] for end in tree.ends]


def _hidden_states(loaded: LoadedModel, tree: Tree, filling: int) -> torch.Tensor:
    """Hidden states `[num_sequences, hidden_size]` after the final norm, in the order of the row.

    Attention is planned once and knows nothing of the filling.
    """
    decoder: Any = loaded.model.get_submodule(loaded.model.base_model_prefix)
    device = loaded.device
    places = sorted(tree.ends)
    packed = tuple(_packed(loaded, tree, places, on) for on in loaded.devices)
    hidden: torch.Tensor = decoder(
        input_ids=_row(_token_ids(tree), filling).to(device, non_blocking=True),
        position_ids=_row(_positions(tree), filling).to(device, non_blocking=True),
        use_cache=False,
        # Of several devices, each layer takes its own; see `rm_core.model.pipeline`.
        packed=packed[0] if len(packed) == 1 else packed,
    ).last_hidden_state[0]
    return hidden[torch.tensor(places).to(hidden.device)] if loaded.deterministic else hidden


def _packed(
    loaded: LoadedModel, tree: Tree, places: list[int], device: torch.device
) -> PackedAttention:
    plan = loaded.backend.plan(of_runs(tree), tree.num_tokens, device)
    packed = PackedAttention(loaded.backend, plan, tree.num_tokens, tree.num_tokens)
    if loaded.deterministic:  # shapes must not depend on the number of readouts
        return packed
    plan = loaded.backend.plan(of_tokens(tree, places), tree.num_tokens, device)
    readouts = torch.tensor(places).to(device, non_blocking=True)
    return replace(packed, readouts=readouts, readout_plan=plan)


def _row(values: Iterator[int], filling: int) -> torch.Tensor:
    return torch.tensor([[*values, *[0] * filling]], dtype=torch.long)


def _token_ids(tree: Tree) -> Iterator[int]:
    return (token for run in tree.runs for token in run.token_ids)


def _positions(tree: Tree) -> Iterator[int]:
    return (run.depth + index for run in tree.runs for index in range(len(run.token_ids)))
