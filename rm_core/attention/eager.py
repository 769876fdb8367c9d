"""Attention written out: the reference, for every family, device and dtype.

The same products, softcap and float32 softmax in the same order as transformers' eager attention,
one segment and one block of queries at a time, so that neither the upper triangle nor keys outside
the window cost anything and long conversations need no square of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment

BLOCK = 128


class EagerBackend:
    """See `rm_core.attention.base.Backend`.

    Args:
        aligned: blocks start at multiples of their size in the conversation and are filled up to
            it. Every product then has a shape that depends on the position alone, so that the
            result of a token does not depend on what else is in the row, to the last bit.
    """

    def __init__(self, aligned: bool = False) -> None:
        self._aligned = aligned

    def plan(
        self, segments: Sequence[Segment], num_keys: int, device: torch.device
    ) -> list[Segment]:
        """See `Backend`."""
        return list(segments)

    def attend(
        self,
        plan: list[Segment],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `Backend`."""
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
        """Attention of queries that follow one another, the first at `position`.

        Args:
            query: `[num_queries, num_heads, head_dim]`, at most a block.
            keys: `[num_keys, num_key_value_heads, head_dim]` of the conversation from its start.
            values: as `keys`.
            position: of the first query.
            scores: of the layer.
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
        # [kv heads, heads of each, queries, head_dim]: heads that share keys and values.
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
    """Rows of zeros around the rows that are there."""
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, before, after))


def _apply_mask(weights: torch.Tensor, start: int, low: int, window: int | None) -> None:
    """Take away, in place, what a query must not see.

    Args:
        weights: `[..., num_queries, num_keys]`; keys go up to the last query's position.
        start: position of the first query.
        low: position of the first key.
        window: see `ScoreResult`.
    """
    stop = start + weights.shape[-2]
    queries = torch.arange(start, stop, device=weights.device).unsqueeze(1)
    later = torch.arange(start, stop, device=weights.device) > queries
    weights[..., start - low :].masked_fill_(later, float("-inf"))
    if window is not None and stop - window > low:
        outside = torch.arange(low, stop - window, device=weights.device) <= queries - window
        weights[..., : stop - window - low].masked_fill_(outside, float("-inf"))
