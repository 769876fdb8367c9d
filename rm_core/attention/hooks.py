"""Runs packed rows in transformers' own decoder, through its two public hooks.

transformers calls the attention function registered here from every layer of the three families.
The function calls the backend that is passed to the decoder. No mask is built, and no model code of
transformers is changed or copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention.base import AttentionBackend, AttentionParams
from rm_core.prefix_cache import CachedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "skyreward_packed"


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Input of one batch's attention, in addition to queries, keys and values.

    One opaque object, so that compiled layers do not trace its contents.

    Attributes:
        backend: attention backend.
        plan: the backend's plan for these queries.
        num_queries: number of planned queries; later rows are padding and get zeros.
        num_keys: number of the row's keys; later keys are padding.
        cached: the batch's part of the prefix cache, whose keys come before those of the row; None
            without a cache.
        keys: keys and values `[1, num_key_value_heads, num_keys, head_dim]` that replace the
            layer's; None if the queries are the complete row.
        readouts: int64 `[num_readouts]`, indices in the row for which the last layer runs; None
            for all.
        readout_plan: the backend's plan for the queries at `readouts`.
    """

    backend: AttentionBackend
    plan: Any
    num_queries: int
    num_keys: int
    cached: CachedBatch | None = None
    keys: tuple[torch.Tensor, torch.Tensor] | None = None
    readouts: torch.Tensor | None = None
    readout_plan: Any = None

    def select_readouts(self, keys: tuple[torch.Tensor, torch.Tensor]) -> PackedAttention:
        """Return the attention of the readout tokens only, over these keys and values."""
        assert self.readouts is not None
        return PackedAttention(
            self.backend, self.readout_plan, len(self.readouts), self.num_keys, self.cached, keys
        )


def install_packed_attention(model: PreTrainedModel) -> None:
    """Make a model's layers use the `PackedAttention` passed to its decoder as `packed`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # Not compiled, because loops over segments differ from batch to batch. Not a decorator, because
    # a decorator would load the compiler, for seconds, wherever this package is imported.
    AttentionInterface.register(NAME, torch.compiler.disable(_attend))
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation(NAME)
    assert model.config._attn_implementation == NAME


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attend(
    module: Any,
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
    """Map `[1, heads, tokens, head_dim]` to `[1, tokens, heads, head_dim]`."""
    if packed.keys is not None:
        key, value = packed.keys
    params = AttentionParams(scaling, softcap, sliding_window)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    num_queries, num_keys = packed.num_queries, packed.num_keys
    keys, values = keys[:num_keys], values[:num_keys]
    if packed.cached is not None:
        keys, values = packed.cached.extend(module.layer_idx, keys, values)
    out = packed.backend.attend(packed.plan, queries[:num_queries], keys, values, params)
    if num_queries < len(queries):
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, len(queries) - num_queries))
    return out.unsqueeze(0), None
