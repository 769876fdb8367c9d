"""Eager attention in plain torch operations: the reference, for every family, device and dtype.

The backend computes the same products, softcap and float32 softmax in the same order as
transformers' eager attention, one segment and one block of queries at a time, so that neither the
upper triangle nor keys outside the window cost anything and memory is not quadratic in the length
of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment

BLOCK = 128


class EagerBackend:
    """Eager backend, see `AttentionBackend`.

    Args:
        aligned: whether blocks start at multiples of their size in the conversation and are padded
            to it. The shape of every product then depends only on the position, so that the result
            of a token does not depend on the rest of the row, to the last bit.
    """

    def __init__(self, aligned: bool = False) -> None:
        self._aligned = aligned

    def plan(
        self, segments: Sequence[Segment], num_keys: int, device: torch.device
    ) -> list[Segment]:
        """See `AttentionBackend`."""
        return list(segments)

    def attend(
        self,
        plan: list[Segment],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        out = torch.empty_like(query)
        for segment in plan:
            keys, values = (
                torch.cat([tensor[start:stop] for start, stop in segment.keys])
                if len(segment.keys) > 1
                else tensor[slice(*segment.keys[0])]
                for tensor in (key, value)
            )
            first = segment.position
            position = first
            while position < segment.num_keys:
                stop = min(segment.num_keys, (position // BLOCK + 1) * BLOCK)
                rows = slice(segment.start + position - first, segment.start + stop - first)
                out[rows] = self._attend_block(query[rows], keys, values, position, params)
                position = stop
        return out

    def _attend_block(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Compute the attention of consecutive queries, the first at `position`.

        Args:
            query: `[num_queries, num_heads, head_dim]`, at most one block.
            keys: `[num_keys, num_key_value_heads, head_dim]`, the conversation from its start.
            values: same shape and order as `keys`.
            position: position of the first query in the conversation.
            params: attention parameters of the layer.
        """
        num_queries = len(query)
        start, stop = position, position + num_queries
        if self._aligned:
            start = position // BLOCK * BLOCK
            query = _pad(query, position - start, start + BLOCK - stop)
            stop = start + BLOCK
        low = 0 if params.window is None else max(0, start - params.window + 1)
        high = min(stop, len(keys))
        keys, values = keys[low:high], values[low:high]
        if self._aligned:
            keys, values = _pad(keys, 0, stop - high), _pad(values, 0, stop - high)
        num_heads, num_kv_heads = query.shape[1], keys.shape[1]
        # [kv heads, query heads per kv head, queries, head_dim]: grouped by shared keys and values.
        grouped = query.unflatten(1, (num_kv_heads, num_heads // num_kv_heads)).permute(1, 2, 0, 3)
        weights = (grouped.flatten(1, 2) @ keys.permute(1, 2, 0)) * params.scaling
        if params.softcap is not None:
            weights = torch.tanh(weights / params.softcap) * params.softcap
        weights = weights.unflatten(1, (-1, stop - start))
        _apply_mask(weights, start, low, params.window)
        weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        out: torch.Tensor = weights.flatten(1, 2) @ values.transpose(0, 1)
        out = out.unflatten(1, (-1, stop - start)).permute(2, 0, 1, 3).flatten(1, 2)
        return out[position - start :][:num_queries]


def _pad(tensor: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Add rows of zeros before and after the rows of a tensor."""
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, before, after))


def _apply_mask(weights: torch.Tensor, start: int, low: int, window: int | None) -> None:
    """Mask the keys that a query must not see, in place.

    Args:
        weights: `[..., num_queries, num_keys]`; the last key has the last query's position.
        start: position of the first query.
        low: position of the first key.
        window: see `AttentionParams`.
    """
    stop = start + weights.shape[-2]
    queries = torch.arange(start, stop, device=weights.device).unsqueeze(1)
    later = torch.arange(start, stop, device=weights.device) > queries
    weights[..., start - low :].masked_fill_(later, float("-inf"))
    if window is not None and stop - window > low:
        outside = torch.arange(low, stop - window, device=weights.device) <= queries - window
        weights[..., : stop - window - low].masked_fill_(outside, float("-inf"))
