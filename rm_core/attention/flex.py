"""Attention on CUDA with FlexAttention: softcap and window in a compiled kernel, no flash-attn.

No keys are gathered. In a packed row the queries that see a key are contiguous and follow the key,
so that two numbers for each key, the first and the last query that see it, define the mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment
from rm_core.compilation import compile_for_all_sizes, recompile_options
from rm_core.device_copy import copy_to_device

BLOCK = 128
# Shorter rows are padded to two blocks: rows of one token and rows shorter than a block would each
# be compiled separately, and only a few kernels are cached.
MIN_ROWS = 2 * BLOCK
_FAR = torch.iinfo(torch.int32).max


@dataclass(frozen=True, slots=True)
class FlexPlan:
    """Mask of a batch, with queries and keys padded to at least `MIN_ROWS`."""

    first: torch.Tensor  # int32 `[num_keys]`, index of the first query that sees the key
    stop: torch.Tensor  # int32 `[num_keys]`, index of the last query that sees the key, plus 1
    query_positions: torch.Tensor  # int32 `[num_queries]`, positions of queries in the conversation
    key_positions: torch.Tensor  # int32 `[num_keys]`, positions of keys in the conversation
    num_queries: int  # number of queries without padding
    # Block masks by window, built when a layer first needs them.
    block_masks: dict[int | None, Any] = field(default_factory=dict)


class FlexBackend:
    """FlexAttention backend, see `AttentionBackend`.

    `kernel` replaces the compiled `flex_attention` in tests.
    """

    def __init__(self, kernel: Callable[..., Any] | None = None) -> None:
        self._kernel = compile_kernel() if kernel is None else kernel
        self._caps: dict[tuple[float, torch.device], Callable[..., torch.Tensor]] = {}

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> FlexPlan:
        """See `AttentionBackend`."""
        num_queries = segments[-1].stop
        queries, keys = max(num_queries, MIN_ROWS), max(num_keys, MIN_ROWS)
        query_positions = torch.full((queries,), _FAR, dtype=torch.int32)
        query_positions[:num_queries] = torch.cat(
            [torch.arange(s.position, s.num_keys, dtype=torch.int32) for s in segments]
        )
        ranges = torch.tensor(_find_key_ranges(segments))
        start, end, position, seen_from, offset, seen_until = ranges.unbind(1)
        lengths = end - start
        # For each key of each range: the index of the range, and the index in the range.
        which = torch.repeat_interleave(lengths)
        index = torch.arange(len(which)) - (lengths.cumsum(0) - lengths)[which]
        key = start[which] + index
        at = position[which] + index
        first = torch.full((keys,), queries)
        first.scatter_reduce_(0, key, (offset[which] + at).maximum(seen_from[which]), "amin")
        stop = torch.zeros(keys, dtype=torch.long)
        stop.scatter_reduce_(0, key, seen_until[which], "amax")
        key_positions = torch.zeros(keys, dtype=torch.long)
        key_positions[key] = at
        first, stop, query_positions, key_positions = (
            copy_to_device(values.int(), device)
            for values in (first, stop, query_positions, key_positions)
        )
        return FlexPlan(first, stop, query_positions, key_positions, num_queries)

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


def _find_key_ranges(segments: Sequence[Segment]) -> list[tuple[int, ...]]:
    """Return the distinct ranges of keys that segments see.

    Returns:
        For each range its start, stop and first position in the conversation, the first query that
        sees it, what to add to the position of one of its keys for the first query that sees the
        key, and the last query that sees the range, plus 1.
    """
    ranges: dict[tuple[int, int], tuple[int, ...]] = {}
    for segment in segments:
        position = 0
        for keys in segment.keys:
            # Of all segments that see a range, the first is the one that may begin within it.
            own = (*keys, position, segment.start, segment.start - segment.position)
            ranges[keys] = (*ranges.get(keys, own)[:5], segment.stop)
            position += keys[1] - keys[0]
    return list(ranges.values())


def _pad(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    if len(tensor) == rows:  # `pad` would copy it
        return tensor
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, rows - len(tensor)))


def _build_block_mask(plan: FlexPlan, window: int | None) -> Any:
    """Build the blocks of queries and keys to compute, and the mask within them.

    A block is computed if the query range of its keys as a whole touches the block. This computes
    a few blocks too many, but allocates nothing of size queries times keys. In a block whose
    queries all see all of its keys, nothing is masked.
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
    highest = _split_into_blocks(query_positions, _FAR).amax(1, keepdim=True)
    first_keys, stop_keys = _split_into_blocks(first, num_queries), _split_into_blocks(stop, 0)
    limits = _split_into_blocks(limit, 0)
    touched = (
        (blocks < stop_keys.amax(1))
        & (blocks + BLOCK > first_keys.amin(1))
        & (lowest < limits.amax(1))
    )
    # Never an incomplete block: the padding of queries has the highest position, and no query sees
    # the padding of keys.
    full = (
        (blocks >= first_keys.amax(1))
        & (blocks + BLOCK <= stop_keys.amin(1))
        & (highest < limits.amin(1))
    )
    options: dict[str, Any] = {
        "compute_q_blocks": False
    }  # for gradients; newer releases can leave them out
    if "compute_q_blocks" not in inspect.signature(BlockMask.from_kv_blocks).parameters:
        options = {}
    return BlockMask.from_kv_blocks(
        *_list_blocks(touched & ~full),
        *_list_blocks(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask,
        seq_lengths=(num_queries, num_keys),
        **options,
    )


def _list_blocks(selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of selected key blocks of each query block, and their indices in order."""
    # The others follow, as BlockMask requires.
    indices = torch.argsort(selected.int(), dim=1, descending=True, stable=True)
    return selected.sum(1).int()[None, None], indices.int()[None, None]


def _split_into_blocks(values: torch.Tensor, fill: int) -> torch.Tensor:
    """Reshape values to `[num_blocks, BLOCK]`, padded at the end."""
    missing = -len(values) % BLOCK
    return torch.nn.functional.pad(values, (0, missing), value=fill).view(-1, BLOCK)
