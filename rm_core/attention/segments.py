"""Who attends to what in a packed row, as plain numbers. Pure Python, no torch.

A segment is a stretch of queries of one conversation. Its keys are slices of the row in the order
of the conversation: the ancestors', then its own. The mask within is causal, aligned at the end:
the last query sees every key, the one before it all but the last, and so on.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from rm_core.packing import PrefixTree


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries that follow one another in a conversation, and their keys.

    Attributes:
        start: first query, as an index among the queries given.
        stop: behind the last query.
        keys: `(start, stop)` of slices of the row; together they are the conversation from its
            first token to the last query's.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]

    @property
    def num_queries(self) -> int:
        """How many queries."""
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        """How many keys the last query sees: its position + 1."""
        return sum(stop - start for start, stop in self.keys)

    @property
    def position(self) -> int:
        """Position of the first query in the conversation."""
        return self.num_keys - self.num_queries


def build_segments(tree: PrefixTree) -> list[Segment]:
    """One segment for each run: every token of the row asks."""
    return [
        Segment(run.start, run.stop, tuple(tree.get_path(index, run.stop)))
        for index, run in enumerate(tree.segments)
    ]


def build_token_segments(tree: PrefixTree, indices: Sequence[int]) -> list[Segment]:
    """One segment for each of some tokens: query i is the token at `places[i]` of the row."""
    starts = [run.start for run in tree.segments]
    return [
        Segment(query, query + 1, tuple(tree.get_path(bisect.bisect(starts, place) - 1, place + 1)))
        for query, place in enumerate(indices)
    ]
