"""Attention on CUDA with FlexAttention: softcap and window in a compiled kernel, no flash-attn.

No keys are gathered. In a packed row the queries that see a key are contiguous and follow the key,
so that two numbers for each key, the first and the last query that see it, define the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment
from rm_core.compilation import compile_for_all_sizes, recompile_options

BLOCK = 128
# Shorter rows are padded to two blocks: rows of one token and rows shorter than a block would each
# be compiled separately, and only a few kernels are cached.
MIN_ROWS = 2 * BLOCK
_FAR = torch.iinfo(torch.int32).max


@dataclass(frozen=True, slots=True)
class FlexPlan:
    """Mask of a batch, with queries and keys padded to at least `MIN_ROWS`.

    Attributes:
        first: int32 `[num_keys]`, index of the first query that sees the key.
        stop: int32 `[num_keys]`, index of the last query that sees the key, plus 1.
        query_positions: int32 `[num_queries]`, positions of queries in the conversation.
        key_positions: int32 `[num_keys]`, positions of keys in the conversation.
        num_queries: number of queries without padding.
        block_masks: block masks by window, built when a layer first needs them.
    """

    first: torch.Tensor
    stop: torch.Tensor
    query_positions: torch.Tensor
    key_positions: torch.Tensor
    num_queries: int
    block_masks: dict[int | None, Any] = field(default_factory=dict)


class FlexBackend:
    """FlexAttention backend, see `AttentionBackend`.

    Args:
        kernel: replacement for the compiled `flex_attention`, for tests.
    """

    def __init__(self, kernel: Callable[..., Any] | None = None) -> None:
        self._kernel = compile_kernel() if kernel is None else kernel
        self._caps: dict[tuple[float, torch.device], Callable[..., torch.Tensor]] = {}

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> FlexPlan:
        """See `AttentionBackend`."""
        num_queries = segments[-1].stop
        queries, keys = max(num_queries, MIN_ROWS), max(num_keys, MIN_ROWS)
        first = torch.full((keys,), queries, dtype=torch.int32)
        stop = torch.zeros(keys, dtype=torch.int32)
        query_positions = torch.full((queries,), _FAR, dtype=torch.int32)
        key_positions = torch.zeros(keys, dtype=torch.int32)
        for segment in segments:
            query_positions[segment.start : segment.stop] = torch.arange(
                segment.position, segment.num_keys
            )
            position = 0
            for start, end in segment.keys:
                key_positions[start:end] = torch.arange(position, position + end - start)
                # A key of the segment itself is visible from its own query on.
                seen_from = segment.start + key_positions[start:end] - segment.position
                first[start:end] = first[start:end].minimum(seen_from.clamp(min=segment.start))
                stop[start:end] = segment.stop
                position += end - start
        return FlexPlan(
            first.to(device),
            stop.to(device),
            query_positions.to(device),
            key_positions.to(device),
            num_queries,
        )

    def attend(
        self,
        plan: FlexPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        if params.window not in plan.block_masks:
            plan.block_masks[params.window] = _build_block_mask(plan, params.window)
        queries, keys = len(plan.query_positions), len(plan.key_positions)
        out = self._kernel(
            *(
                _pad(tensor, rows).transpose(0, 1).unsqueeze(0)
                for tensor, rows in ((query, queries), (key, keys), (value, keys))
            ),
            score_mod=self._get_softcap(params.softcap, query.device),
            block_mask=plan.block_masks[params.window],
            scale=params.scaling,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)[: plan.num_queries]  # type: ignore[no-any-return]

    def _get_softcap(
        self, softcap: float | None, device: torch.device
    ) -> Callable[..., torch.Tensor] | None:
        """Return the function that caps a score; the same object per softcap, compiled once."""
        if softcap is None:
            return None
        if (softcap, device) not in self._caps:
            # A tensor, because a number would become a symbol that the kernel's template rejects.
            limit = torch.tensor(softcap, device=device)

            def cap(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
                return limit * torch.tanh(score / limit)

            self._caps[softcap, device] = cap
        return self._caps[softcap, device]


def compile_kernel() -> Callable[..., Any]:
    """Return `flex_attention`, compiled for rows of any length at its first call."""
    from torch.nn.attention.flex_attention import flex_attention

    # The full graph or an error: the fallback would compute scores for every query and key.
    compiled: Callable[..., Any] = torch.compile(
        flex_attention, dynamic=True, fullgraph=True, **recompile_options()
    )

    def kernel(*tensors: torch.Tensor, **options: Any) -> Any:
        with compile_for_all_sizes():
            return compiled(*tensors, **options)

    return kernel


def _pad(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, rows - len(tensor)))


def _build_block_mask(plan: FlexPlan, window: int | None) -> Any:
    """Build the blocks of queries and keys to compute, and the mask within them.

    A block is computed if the query range of its keys as a whole touches the block. This computes
    a few blocks too many, but allocates nothing of size queries times keys.
    """
    from torch.nn.attention.flex_attention import BlockMask

    first, stop, query_positions = plan.first, plan.stop, plan.query_positions
    # Query position from which on a key is no longer seen; one mask with and without a window.
    limit = torch.full_like(stop, _FAR) if window is None else plan.key_positions + window

    def mask(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        visible = (query >= first[key]) & (query < stop[key])
        return visible & (query_positions[query] < limit[key])

    num_queries, num_keys = len(query_positions), len(first)
    blocks = torch.arange(-(-num_queries // BLOCK), device=first.device).unsqueeze(1) * BLOCK
    lowest = _split_into_blocks(query_positions, _FAR).amin(1, keepdim=True)
    touched = (
        (blocks < _split_into_blocks(stop, 0).amax(1))
        & (blocks + BLOCK > _split_into_blocks(first, num_queries).amin(1))
        & (lowest < _split_into_blocks(limit, 0).amax(1))
    )
    # Touched blocks first, in order, as BlockMask requires.
    indices = torch.argsort(touched.int(), dim=1, descending=True, stable=True)
    return BlockMask.from_kv_blocks(
        touched.sum(1).int()[None, None],
        indices.int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask,
        seq_lengths=(num_queries, num_keys),
    )


def _split_into_blocks(values: torch.Tensor, fill: int) -> torch.Tensor:
    """Reshape values to `[num_blocks, BLOCK]`, padded at the end."""
    missing = -len(values) % BLOCK
    return torch.nn.functional.pad(values, (0, missing), value=fill).view(-1, BLOCK)
