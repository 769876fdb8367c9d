"""Pack token sequences into prefix trees under a token budget, and restore the order of results.

Identical sequences are scored once, and a shared prefix of several sequences is encoded once: each
batch is a compressed trie. The tokens of a batch form a single row without padding, which is
divided into segments. Every sequence adds at most one segment: the tokens that it does not share
with the sequence before it. A segment continues the path of an earlier segment (its parent) from a
given depth. The first child of a node therefore directly follows the node, and all descendants of
a token are contiguous and follow that token.

Start at `pack`. `rm_core.model.forward` runs a row through the model. Pure Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

TokenIds: TypeAlias = tuple[int, ...]
Sequential = TypeVar("Sequential", TokenIds, str)
T = TypeVar("T")

# An underfull batch costs little, but a shared prefix that two batches encode costs its tokens. A
# batch ends where the cost is lowest: one token encoded twice costs as much as this many unused
# tokens of the budget.
SPLIT_PENALTY = 64


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """Tokens that are consecutive both in the row and in their sequence.

    Attributes:
        start: index of the first token in the row.
        depth: position of the first token in its sequence. The path before it is the parent's.
        parent: index of the segment whose path is shared up to `depth`; -1 for none.
        token_ids: tokens of the segment, at least one.
    """

    start: int
    depth: int
    parent: int
    token_ids: TokenIds

    @property
    def stop(self) -> int:
        """Index in the row after the last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """One batch: distinct sequences as a packed prefix tree.

    Attributes:
        sequences: distinct, non-empty sequences in the order of the row.
        segments: segments in the order of the row.
        ends: index of each sequence's last token in the row.
        num_tokens: length of the row.
    """

    sequences: tuple[TokenIds, ...]
    segments: tuple[TreeSegment, ...]
    ends: tuple[int, ...]
    num_tokens: int

    def get_path(self, index: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges of the row that form a segment's sequence, up to `stop`.

        Args:
            index: index of the segment.
            stop: index in the row after the last token to include; within the segment.

        Returns:
            `(start, stop)` of each range, in the order of the sequence.
        """
        ranges = []
        while index >= 0:
            segment = self.segments[index]
            ranges.append((segment.start, stop))
            if segment.parent >= 0:
                parent = self.segments[segment.parent]
                stop = parent.start + segment.depth - parent.depth
            index = segment.parent
        return ranges[::-1]


@dataclass(frozen=True, slots=True)
class Packing:
    """Batches of distinct sequences, and the position of each input in them.

    Attributes:
        batches: the batches. A batch exceeds the budget only if its single sequence does.
        indices: `[num_inputs]`, index of each input among all sequences of all batches, in order.
    """

    batches: tuple[PrefixTree, ...]
    indices: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all rows, which is the number of tokens that the model computes."""
        return sum(batch.num_tokens for batch in self.batches)

    def restore(self, results: Sequence[T]) -> list[T]:
        """Return results in the order of the inputs.

        Args:
            results: one result for each sequence of each batch, in order.
        """
        assert len(results) == sum(len(batch.sequences) for batch in self.batches)
        return [results[index] for index in self.indices]


def pack(sequences: Sequence[TokenIds], max_batch_tokens: int) -> Packing:
    """Merge duplicates, sort sequences by shared prefix, and divide them into batches.

    Args:
        sequences: token ids of each sequence, none empty.
        max_batch_tokens: maximum number of tokens in a row, at least 1.
    """
    # In reverse order, a sequence follows those of which it is a prefix, and adds no tokens. Not a
    # set: a batch of the scheduler comes sorted, and sorting it again takes no time.
    ordered = sorted(dict.fromkeys(sequences), reverse=True)
    indices = {sequence: index for index, sequence in enumerate(ordered)}
    shared = [0, *map(common_prefix_length, ordered, ordered[1:])][: len(ordered)]
    batches = tuple(
        _build_tree(ordered[start:stop], shared[start:stop])
        for start, stop in _find_cuts([len(s) for s in ordered], shared, max_batch_tokens)
    )
    return Packing(batches, tuple(indices[sequence] for sequence in sequences))


def split_in_half(tree: PrefixTree) -> tuple[PrefixTree, PrefixTree]:
    """Split a batch of several sequences into two batches, in the same order."""
    middle = len(tree.sequences) // 2
    left, right = (
        _build_tree(half, [0, *map(common_prefix_length, half, half[1:])])
        for half in (list(tree.sequences[:middle]), list(tree.sequences[middle:]))
    )
    return left, right


def common_prefix_length(left: Sequential, right: Sequential) -> int:
    """Return the length of the common prefix: in tokens of sequences, in characters of texts."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while low < high - 1:  # left[:low] is shared, left[:high] is not
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _find_cuts(lengths: list[int], shared: list[int], budget: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop index of each batch in the ordered sequences.

    Args:
        lengths: number of tokens of each sequence.
        shared: length of the prefix that each sequence shares with the one before it, in tokens.
        budget: maximum number of tokens in a batch of several sequences.
    """
    start = 0
    while start < len(lengths):
        sizes = [lengths[start]]  # tokens of a batch of the first sequence, the first two, ...
        stop = start + 1
        while stop < len(lengths) and sizes[-1] + lengths[stop] - shared[stop] <= budget:
            sizes.append(sizes[-1] + lengths[stop] - shared[stop])
            stop += 1
        if stop < len(lengths):
            # From the last cut to the first: among cuts of equal cost, the fullest batch wins.
            costs = {
                cut: SPLIT_PENALTY * shared[cut] + budget - sizes[cut - start - 1]
                for cut in range(stop, start, -1)
            }
            stop = min(costs, key=costs.__getitem__)
        yield start, stop
        start = stop


def _build_tree(sequences: list[TokenIds], shared: list[int]) -> PrefixTree:
    """Build the tree of consecutive sequences. `shared[0]` is ignored."""
    segments: list[TreeSegment] = []
    ends: list[int] = []
    path: list[int] = []  # indices of the segments that form the previous sequence
    num_tokens = 0
    for index, sequence in enumerate(sequences):
        depth = shared[index] if index else 0
        while path and segments[path[-1]].depth >= depth:
            path.pop()
        if depth < len(sequence):
            parent = path[-1] if path else -1
            path.append(len(segments))
            segments.append(TreeSegment(num_tokens, depth, parent, sequence[depth:]))
            num_tokens = segments[-1].stop
        last = segments[path[-1]]
        ends.append(last.start + len(sequence) - 1 - last.depth)
    return PrefixTree(tuple(sequences), tuple(segments), tuple(ends), num_tokens)
