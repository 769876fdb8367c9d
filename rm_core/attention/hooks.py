"""Puts the packed row under transformers' own decoder, through its two public hooks.

transformers calls the attention function registered here from every layer of the three families;
it hands the work to the backend that travels in the call. No mask is built. No model code of
transformers is changed or copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention.base import AttentionBackend, AttentionParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "skyreward_packed"


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """What the attention of one batch needs besides queries, keys and values.

    Everything in one opaque object: compiled layers look at none of it.

    Attributes:
        backend: computes it.
        plan: of the backend, for these queries.
        num_queries: how many the plan is for; rows behind them are filling and get zeros.
        num_keys: how many the plan is for; those behind them are of the filling.
        keys: keys and values `[1, num_key_value_heads, num_keys, head_dim]` that replace those of
            the layer; None where the queries are the whole row.
        readouts: int64 `[num_readouts]`, places in the row that the last layer is to run on; None
            for all.
        readout_plan: as `plan`, for the queries at these places.
    """

    backend: AttentionBackend
    plan: Any
    num_queries: int
    num_keys: int
    keys: tuple[torch.Tensor, torch.Tensor] | None = None
    readouts: torch.Tensor | None = None
    readout_plan: Any = None

    def select_readouts(self, keys: tuple[torch.Tensor, torch.Tensor]) -> PackedAttention:
        """The attention of the readout tokens alone, over these keys and values."""
        assert self.readouts is not None
        return PackedAttention(
            self.backend, self.readout_plan, len(self.readouts), self.num_keys, keys
        )


def install_packed_attention(model: PreTrainedModel) -> None:
    """Let a model's layers attend through the row that is passed to its decoder as `packed`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # Its loops over segments differ from batch to batch: nothing to compile. Not a decorator: that
    # would load the compiler, for seconds, wherever this package is imported.
    AttentionInterface.register(NAME, torch.compiler.disable(_attend))
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation(NAME)
    assert model.config._attn_implementation == NAME


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    packed: PackedAttention,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """In `[1, heads, tokens, head_dim]`, out `[1, tokens, heads, head_dim]`."""
    if packed.keys is not None:
        key, value = packed.keys
    scores = AttentionParams(scaling, softcap, sliding_window)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    num_queries, num_keys = packed.num_queries, packed.num_keys
    out = packed.backend.attend(
        packed.plan, queries[:num_queries], keys[:num_keys], values[:num_keys], scores
    )
    if num_queries < len(queries):
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, len(queries) - num_queries))
    return out.unsqueeze(0), None
