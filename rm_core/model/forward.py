"""Runs a packed row through the model: one batch in, one raw float32 logit per readout out.

Nothing is padded, and a shared prefix is encoded once: transformers' decoder runs on the tree's row
as it is, with each token's position in its conversation, and attention limits each token to its own
conversation. The head is applied in float32.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from rm_core.attention import (
    PackedAttention,
    build_segments,
    build_token_segments,
    run_packed_attention,
)
from rm_core.compilation import compile_for_all_sizes
from rm_core.device_copy import copy_to_device
from rm_core.model.decoder import get_decoder
from rm_core.model.loading import LoadedModel
from rm_core.model.precision import use_ieee_products
from rm_core.model.vision import build_row_positions
from rm_core.packing import PrefixTree
from rm_core.prefix_cache import CachedBatch


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """A batch whose work is on the device, and whose logits arrive when the device has done it."""

    tree: PrefixTree  # the batch
    # Float32 `[num_read_rows, num_outputs]` on the CPU, in the order of the row; valid after the
    # event.
    logits: torch.Tensor
    # Event after the copy of the logits; None if the device is the CPU.
    event: torch.cuda.Event | None

    def read(self) -> list[float]:
        """Wait for the device, once, and return the outputs of each sequence's readouts."""
        if self.event is not None:
            self.event.synchronize()
        outputs_at = dict(zip(self.tree.all_read_rows, self.logits.tolist(), strict=True))
        return [
            output for rows in self.tree.read_rows for row in rows for output in outputs_at[row]
        ]


ForwardPass: TypeAlias = Callable[
    [LoadedModel, PrefixTree, int, CachedBatch | None], "LaunchedBatch | list[float]"
]
"""A function with the arguments of `launch_batch`, and its result or that of `forward_batch`."""


def forward_batch(
    loaded_model: LoadedModel,
    tree: PrefixTree,
    row_multiple: int = 1,
    cached: CachedBatch | None = None,
) -> list[float]:
    """Return the raw outputs of a batch, in the order of its sequences; see `launch_batch`.

    Returns:
        The head's outputs at each readout of each sequence; NaN and infinity are unchanged.
    """
    return launch_batch(loaded_model, tree, row_multiple, cached).read()


@use_ieee_products()
@torch.inference_mode()
def launch_batch(
    loaded_model: LoadedModel,
    tree: PrefixTree,
    row_multiple: int = 1,
    cached: CachedBatch | None = None,
) -> LaunchedBatch:
    """Start a batch on the device, without waiting for CUDA devices.

    The row is padded to a multiple of `row_multiple` tokens, for the mode that needs a fixed shape;
    the padding is not read. `cached` is the batch's part of the prefix cache, whose tree is `tree`.
    """
    is_compiled = loaded_model.compilation.is_compiled
    with compile_for_all_sizes() if is_compiled else contextlib.nullcontext():
        hidden = _compute_hidden_states(loaded_model, tree, -tree.num_tokens % row_multiple, cached)
    logits = loaded_model.head.apply(hidden)
    if logits.device.type != "cuda":
        return LaunchedBatch(tree, logits, None)
    # Copied in the order of the device's work, before the batch that is launched next.
    on_host = torch.empty_like(logits, device="cpu", pin_memory=True)
    on_host.copy_(logits, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(logits.device))
    return LaunchedBatch(tree, on_host, event)


def _compute_hidden_states(
    loaded_model: LoadedModel, tree: PrefixTree, num_padding_tokens: int, cached: CachedBatch | None
) -> torch.Tensor:
    """Return hidden states `[num_read_rows, hidden_size]` after the final norm, in row order.

    Attention is planned once, without the padding tokens.
    """
    decoder = get_decoder(loaded_model.model)
    readout_indices = tree.all_read_rows
    stages = [
        (stage, _build_packed_attention(loaded_model, tree, readout_indices, stage, cached))
        for stage in loaded_model.devices
    ]
    with run_packed_attention(stages):
        hidden: torch.Tensor = decoder(
            **_build_inputs(loaded_model, tree, num_padding_tokens), use_cache=False
        ).last_hidden_state[0]
    if not loaded_model.deterministic:
        return hidden
    return hidden[copy_to_device(torch.tensor(readout_indices), hidden.device)]


def _build_inputs(
    loaded_model: LoadedModel, tree: PrefixTree, num_padding_tokens: int
) -> dict[str, Any]:
    """Return the decoder's inputs for a row, on the model's first device."""
    device, tower = loaded_model.device, loaded_model.vision_tower
    input_ids = copy_to_device(_build_token_ids(tree, num_padding_tokens), device)
    if tower is None:
        positions = _build_positions(tree, num_padding_tokens)
        return {"input_ids": input_ids, "position_ids": copy_to_device(positions, device)}
    positions = build_row_positions(tree, num_padding_tokens)
    inputs = tower.build_inputs(tree, input_ids)
    return {**inputs, "position_ids": copy_to_device(positions, device)}


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
    readouts = copy_to_device(torch.tensor(readout_indices), device)
    return replace(packed, readouts=readouts, readout_plan=plan)


def _build_token_ids(tree: PrefixTree, num_padding_tokens: int) -> torch.Tensor:
    """Return the ids of the row as int64 `[1, num_tokens]`, padded with zeros."""
    row = array("q")
    for segment in tree.row_segments:
        row.extend(segment.token_ids)
    row.extend([0] * num_padding_tokens)
    return torch.frombuffer(row, dtype=torch.long).unsqueeze(0)


def _build_positions(tree: PrefixTree, num_padding_tokens: int) -> torch.Tensor:
    """Return each token's position in its conversation, as `_build_token_ids`."""
    runs = [
        torch.arange(segment.depth, segment.depth + len(segment.token_ids))
        for segment in tree.row_segments
    ]
    return torch.cat([*runs, torch.zeros(num_padding_tokens, dtype=torch.long)]).unsqueeze(0)
