"""From token sequences to packed prefix trees under a token budget, and back. Pure Python.

Identical sequences are scored once, and what several share at their start is encoded once: each
batch is a compressed trie. Its tokens lie one after another in a single row, without padding, as
runs. Every sequence adds one run: what it does not share with the sequence before it. A run goes
on with the path of an earlier run (its parent) from a depth on, so the first child of a node
stands right behind it in one piece, and what hangs on any token stands together behind it.

`pack` is the start; how a row goes through the model is the business of `rm_core.model.forward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

TokenIds: TypeAlias = tuple[int, ...]
Sequential = TypeVar("Sequential", TokenIds, str)
T = TypeVar("T")

# A batch left partly empty costs little, a shared prefix encoded twice costs its tokens: a batch
# is cut where it loses least, one token encoded twice counting as this many places left empty.
SPLIT_PENALTY = 64


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """Tokens of the row that stand one after another, also in their sequence.

    Attributes:
        start: place of the first one in the row.
        depth: position of the first one in its sequence; the path before it is the parent's.
        parent: index of the run whose path it shares up to `depth`; -1 for none.
        token_ids: the run's tokens, at least one.
    """

    start: int
    depth: int
    parent: int
    token_ids: TokenIds

    @property
    def stop(self) -> int:
        """Place in the row behind the last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """One batch: distinct sequences as a packed prefix tree.

    Attributes:
        sequences: distinct, none empty, in the order of the row.
        runs: in the order of the row.
        ends: for each sequence, the place of its last token in the row.
        num_tokens: length of the row.
    """

    sequences: tuple[TokenIds, ...]
    segments: tuple[TreeSegment, ...]
    ends: tuple[int, ...]
    num_tokens: int

    def get_path(self, index: int, stop: int) -> list[tuple[int, int]]:
        """The slices of the row that a run's sequence consists of, up to a place in the run.

        Args:
            index: of the run.
            stop: place in the row behind the last token that counts.

        Returns:
            `(start, stop)` of each slice, in the order of the sequence.
        """
        slices = []
        while index >= 0:
            run = self.segments[index]
            slices.append((run.start, stop))
            if run.parent >= 0:
                parent = self.segments[run.parent]
                stop = parent.start + run.depth - parent.depth
            index = run.parent
        return slices[::-1]


@dataclass(frozen=True, slots=True)
class Packing:
    """Batches of distinct sequences, and where each input went.

    Attributes:
        batches: a batch is over the budget only if it holds a single sequence that is.
        places: `[num_inputs]`, index of each input among all sequences of all batches in order.
    """

    batches: tuple[PrefixTree, ...]
    indices: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together: what goes through the model."""
        return sum(batch.num_tokens for batch in self.batches)

    def restore(self, results: Sequence[T]) -> list[T]:
        """Results in the order of the inputs.

        Args:
            results: one for each sequence of each batch, in order.
        """
        assert len(results) == sum(len(batch.sequences) for batch in self.batches)
        return [results[place] for place in self.indices]


def pack(sequences: Sequence[TokenIds], max_batch_tokens: int) -> Packing:
    """Merge duplicates, bring together what shares its start, and cut into batches.

    Args:
        sequences: token ids, none empty.
        max_batch_tokens: the budget in tokens of a row, at least 1.
    """
    # Reversed, a sequence stands behind those that it is the start of, and adds no tokens to them.
    ordered = sorted(set(sequences), reverse=True)
    place_of = {sequence: place for place, sequence in enumerate(ordered)}
    shared = [0, *map(common_prefix_length, ordered, ordered[1:])][: len(ordered)]
    batches = tuple(
        _build_tree(ordered[start:stop], shared[start:stop])
        for start, stop in _find_cuts([len(s) for s in ordered], shared, max_batch_tokens)
    )
    return Packing(batches, tuple(place_of[sequence] for sequence in sequences))


def split_in_half(tree: PrefixTree) -> tuple[PrefixTree, PrefixTree]:
    """A batch of several sequences as two, in the same order."""
    middle = len(tree.sequences) // 2
    left, right = (
        _build_tree(part, [0, *map(common_prefix_length, part, part[1:])])
        for part in (list(tree.sequences[:middle]), list(tree.sequences[middle:]))
    )
    return left, right


def common_prefix_length(left: Sequential, right: Sequential) -> int:
    """How many tokens two sequences, or characters two texts, have in common at their start."""
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
    """Where batches start and stop in the order of the sequences.

    Args:
        lengths: of each sequence.
        shared: tokens that each has in common with the one before it.
        budget: most tokens of a batch of several.
    """
    start = 0
    while start < len(lengths):
        sizes = [lengths[start]]  # of the batch with the first, the first two, ...
        stop = start + 1
        while stop < len(lengths) and sizes[-1] + lengths[stop] - shared[stop] <= budget:
            sizes.append(sizes[-1] + lengths[stop] - shared[stop])
            stop += 1
        if stop < len(lengths):
            # Latest first, so that of equal cuts the fullest batch is taken.
            costs = {
                cut: SPLIT_PENALTY * shared[cut] + budget - sizes[cut - start - 1]
                for cut in range(stop, start, -1)
            }
            stop = min(costs, key=costs.__getitem__)
        yield start, stop
        start = stop


def _build_tree(sequences: list[TokenIds], shared: list[int]) -> PrefixTree:
    """The tree of neighbours in the order; what the first shares with those before is no matter."""
    runs: list[TreeSegment] = []
    ends: list[int] = []
    path: list[int] = []  # runs that the sequence before this one consists of
    num_tokens = 0
    for index, sequence in enumerate(sequences):
        depth = shared[index] if index else 0
        while path and runs[path[-1]].depth >= depth:
            path.pop()
        if depth < len(sequence):
            parent = path[-1] if path else -1
            path.append(len(runs))
            runs.append(TreeSegment(num_tokens, depth, parent, sequence[depth:]))
            num_tokens = runs[-1].stop
        last = runs[path[-1]]
        ends.append(last.start + len(sequence) - 1 - last.depth)
    return PrefixTree(tuple(sequences), tuple(runs), tuple(ends), num_tokens)
