"""Base of the backends on variable-length kernels: each segment is a separate sequence.

Keys and values are gathered into the order of the conversations once per layer, so that each
segment is a sequence with fewer queries than keys. The kernels then align their causal mask at the
end, as a segment requires, and count the window in positions. The keys of a prefix are repeated for
each segment that continues it; where that would take much memory, some segments run after others.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from rm_core.attention.base import AttentionParams
from rm_core.attention.segments import Segment
from rm_core.device_copy import copy_to_device

MAX_KEY_REPEATS = 8
"""Maximum number of gathered keys, as a multiple of the keys of the batch."""


@dataclass(frozen=True, slots=True)
class VarlenChunk:
    """Segments that one call of the kernel computes."""

    queries: slice  # slice of the batch's queries
    cu_seqlens_q: torch.Tensor  # int32 `[num_segments + 1]`, start of each segment's queries
    cu_seqlens_k: torch.Tensor  # int32 `[num_segments + 1]`, start of each segment's gathered keys
    max_seqlen_q: int  # largest number of queries in a segment
    max_seqlen_k: int  # largest number of keys in a segment
    # Int64 `[num_gathered]`, indices of the keys of the batch; None if they are all keys in the
    # right order.
    gather_indices: torch.Tensor | None


VarlenPlan: TypeAlias = list[VarlenChunk]


class VarlenBackend(abc.ABC):
    """Base class of the backends on variable-length kernels."""

    @abc.abstractmethod
    def attend_chunk(
        self,
        chunk: VarlenChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Call the kernel.

        Args:
            chunk: boundaries of the segments.
            query: `[num_queries, num_heads, head_dim]`.
            key: `[num_keys, num_key_value_heads, head_dim]`, in the order of the segments.
            value: same shape and order as `key`.
            params: attention parameters of the layer.
        """

    def plan(self, segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenPlan:
        """See `AttentionBackend`."""
        return [
            _build_chunk(chunk, num_keys, device)
            for chunk in _split(segments, MAX_KEY_REPEATS * num_keys)
        ]

    def attend(
        self,
        plan: VarlenPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        outputs = [
            self.attend_chunk(
                chunk,
                query[chunk.queries],
                _gather(key, chunk.gather_indices),
                _gather(value, chunk.gather_indices),
                params,
            )
            for chunk in plan
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _split(segments: Sequence[Segment], max_keys: int) -> list[list[Segment]]:
    """Divide segments, in order, into chunks of at most `max_keys` keys; no segment has more."""
    chunks: list[list[Segment]] = [[]]
    num_keys = 0
    for segment in segments:
        num_keys += segment.num_keys
        if num_keys > max_keys and chunks[-1]:
            chunks.append([])
            num_keys = segment.num_keys
        chunks[-1].append(segment)
    return chunks


def _build_chunk(segments: Sequence[Segment], num_keys: int, device: torch.device) -> VarlenChunk:
    queries = [segment.num_queries for segment in segments]
    keys = [segment.num_keys for segment in segments]
    slices = [key_slice for segment in segments for key_slice in segment.keys]
    neighbors = itertools.pairwise([(0, 0), *slices, (num_keys, 0)])
    gather_indices = None
    # Gather the keys unless the slices are all keys, in their order.
    if not all(before[1] == after[0] for before, after in neighbors):
        indices = torch.cat([torch.arange(start, stop) for start, stop in slices])
        gather_indices = copy_to_device(indices, device)
    return VarlenChunk(
        slice(segments[0].start, segments[-1].stop),
        _build_cu_seqlens(queries, device),
        _build_cu_seqlens(keys, device),
        max(queries),
        max(keys),
        gather_indices,
    )


def _gather(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    return tensor if indices is None else tensor.index_select(0, indices)


def _build_cu_seqlens(lengths: list[int], device: torch.device) -> torch.Tensor:
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return copy_to_device(starts, device)
