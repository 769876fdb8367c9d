"""Describes in plain numbers which keys each query of a packed row attends to. No torch.

A segment is a stretch of consecutive queries of one conversation. Its keys are slices of the
batch's keys in the order of the conversation: the ancestors' keys, then its own. The batch's keys
are those read from the prefix cache, then those of the row. The mask within a segment is causal and
aligned at the end: the last query sees every key, the query before sees all keys except the last,
and so on.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from rm_core.packing import PrefixTree


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive queries of a conversation, and their keys."""

    start: int  # index of the first query among the queries of the batch
    stop: int  # index of the last query, plus 1
    # `(start, stop)` of slices of the keys; together the slices are the conversation from its first
    # token to the last query's token.
    keys: tuple[tuple[int, int], ...]

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        """Number of keys that the last query sees: its position + 1."""
        return sum(stop - start for start, stop in self.keys)

    @property
    def position(self) -> int:
        """Position of the first query in the conversation."""
        return self.num_keys - self.num_queries


def build_segments(tree: PrefixTree) -> list[Segment]:
    """Return one segment for each segment of the row: every token of the row is a query."""
    num_cached = tree.num_cached_tokens
    return [
        Segment(
            segment.start - num_cached,
            segment.stop - num_cached,
            tuple(tree.get_path(index, segment.stop)),
        )
        for index, segment in enumerate(tree.segments)
        if segment.start >= num_cached
    ]


def build_token_segments(tree: PrefixTree, indices: Sequence[int]) -> list[Segment]:
    """Return one segment for each of some tokens: query i is the row's token at `indices[i]`."""
    starts = [segment.start for segment in tree.segments]
    keys = [tree.num_cached_tokens + index for index in indices]
    return [
        Segment(query, query + 1, tuple(tree.get_path(bisect.bisect(starts, key) - 1, key + 1)))
        for query, key in enumerate(keys)
    ]
