"""Pack token sequences into prefix trees under a token budget, and restore the order of results.

Identical sequences are scored once, and a shared prefix of several sequences is encoded once: each
batch is a compressed trie. The tokens of a batch form a single row without padding, which is
divided into segments. Every sequence adds at most one segment: the tokens that it does not share
with the sequence before it. A segment continues the path of an earlier segment (its parent) from a
given depth. The first child of a node therefore directly follows the node, and all descendants of
a token are contiguous and follow that token.

Tokens whose keys and values are in the prefix cache leave the row (`PrefixTree.exclude_cached`):
the tree's segments then begin with those that are read from the cache.

Start at `pack`. `rm_core.model.forward` runs a row through the model. Pure Python.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from rm_core.types import EncodedImage

TokenIds: TypeAlias = tuple[int, ...]
Readouts: TypeAlias = tuple[int, ...]
"""Ascending indices of the tokens of a sequence at which it is read; empty: at its last token."""
Sequential = TypeVar("Sequential", TokenIds, str)
T = TypeVar("T")
_Input: TypeAlias = tuple[str, TokenIds, Readouts]  # salt, token ids, readouts

# An underfull batch costs little, but a shared prefix that two batches encode costs its tokens. A
# batch ends where the cost is lowest: one token encoded twice costs as much as this many unused
# tokens of the budget.
SPLIT_PENALTY = 64
# Keys and values that are read from the prefix cache take memory and time in every layer.
MAX_KEYS_PER_TOKEN = 4
"""Maximum number of keys of a batch, cached ones included, as a multiple of the token budget."""


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """Tokens that are consecutive both among the keys of a batch and in their sequence."""

    start: int  # index of the first token among the keys: the cached tokens, then those of the row
    depth: int  # position of the first token in its sequence. The path before it is the parent's.
    parent: int  # index of the segment whose path is shared up to `depth`; -1 for none
    sequence: int  # index of a sequence that contains the segment
    token_ids: TokenIds  # tokens of the segment, at least one

    @property
    def stop(self) -> int:
        """Index among the keys after the last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """One batch: distinct sequences as a packed prefix tree."""

    sequences: tuple[TokenIds, ...]  # distinct, non-empty sequences in the order of the row
    # Cached segments, then those of the row, each in the order of the tree.
    segments: tuple[TreeSegment, ...]
    # For each sequence, the indices in the row of the tokens at which it is read.
    read_rows: tuple[tuple[int, ...], ...]
    num_tokens: int  # length of the row
    num_cached_tokens: int = 0  # number of tokens that are not in the row but in the prefix cache
    salts: tuple[str, ...] = ()  # salt of each sequence; see `pack`
    readouts: tuple[Readouts, ...] = ()  # readouts of each sequence; see `pack`
    # Images of the sequences, by `EncodedImage.key`; may have others too.
    images: Mapping[int, EncodedImage] = field(default_factory=dict)

    @property
    def num_keys(self) -> int:
        """Number of keys: cached tokens and tokens of the row."""
        return self.num_cached_tokens + self.num_tokens

    @property
    def ends(self) -> tuple[int, ...]:
        """Index of each sequence's last token in the row."""
        return tuple(rows[-1] for rows in self.read_rows)

    @property
    def all_read_rows(self) -> list[int]:
        """Ascending indices in the row of the tokens at which any sequence is read."""
        return sorted({row for rows in self.read_rows for row in rows})

    @property
    def row_segments(self) -> tuple[TreeSegment, ...]:
        """Segments of the row, whose tokens are computed."""
        return tuple(s for s in self.segments if s.start >= self.num_cached_tokens)

    def get_path(self, index: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges of keys that form a segment's sequence, up to `stop`.

        Args:
            index: index of the segment.
            stop: index among the keys after the last token to include; within the segment.

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

    def exclude_cached(self, num_cached: Sequence[int]) -> PrefixTree:
        """Return the tree whose row lacks the tokens that are in the prefix cache.

        Args:
            num_cached: for each segment of this tree, which has no cached ones, the number of its
                first tokens that are cached. No token at which a sequence is read may be among
                them, and a segment may have any only if its whole path before it is cached.
        """
        assert not self.num_cached_tokens
        if not any(num_cached):
            return self
        num_cached_segments = sum(map(bool, num_cached))
        cached: list[TreeSegment] = []
        row: list[TreeSegment] = []
        # Indices of the cached part and of the part in the row of each segment; -1 for none.
        parts: list[tuple[int, int]] = []
        key_start, row_start = 0, sum(num_cached)
        row_starts = []  # of the part in the row
        for segment, count in zip(self.segments, num_cached, strict=True):
            parent = -1
            if segment.parent >= 0:
                before = self.segments[segment.parent]
                is_cached = segment.depth <= before.depth + num_cached[segment.parent]
                parent = parts[segment.parent][not is_cached]
            cached_part = row_part = -1
            if count:
                cached_part = len(cached)
                token_ids = segment.token_ids[:count]
                cached.append(replace(segment, start=key_start, parent=parent, token_ids=token_ids))
                key_start, parent = key_start + count, cached_part
            row_starts.append(row_start)
            if count < len(segment.token_ids):
                row_part = num_cached_segments + len(row)
                token_ids = segment.token_ids[count:]
                depth = segment.depth + count
                row.append(TreeSegment(row_start, depth, parent, segment.sequence, token_ids))
                row_start = row[-1].stop
            parts.append((cached_part, row_part))
        starts = [segment.start for segment in self.segments]

        def find_in_row(readout: int) -> int:
            index = bisect.bisect(starts, readout) - 1
            offset = readout - starts[index] - num_cached[index]
            assert offset >= 0, "a token at which a sequence is read is always computed"
            return row_starts[index] + offset - key_start

        return replace(
            self,
            segments=(*cached, *row),
            read_rows=tuple(tuple(map(find_in_row, rows)) for rows in self.read_rows),
            num_tokens=row_start - key_start,
            num_cached_tokens=key_start,
        )


@dataclass(frozen=True, slots=True)
class Packing:
    """Batches of distinct sequences, and the position of each input in them."""

    # The batches. A batch exceeds the budget only if its single sequence does.
    batches: tuple[PrefixTree, ...]
    # `[num_inputs]`, index of each input among all sequences of all batches, in order.
    indices: tuple[int, ...]

    @property
    def num_readouts(self) -> int:
        """Number of readouts of all inputs."""
        counts = [len(rows) for batch in self.batches for rows in batch.read_rows]
        return sum(counts[index] for index in self.indices)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all rows, which is the number of tokens that the model computes."""
        return sum(batch.num_tokens for batch in self.batches)

    def restore(self, results: Sequence[T]) -> list[T]:
        """Return results in the order of the inputs.

        Args:
            results: the same number of results for each readout of each sequence of each batch, in
                order.
        """
        counts = [len(rows) for batch in self.batches for rows in batch.read_rows]
        bounds = list(accumulate(counts, initial=0))
        num_outputs, rest = divmod(len(results), bounds[-1] or 1)
        assert not rest
        assert num_outputs or not counts
        if num_outputs == 1 and bounds[-1] == len(counts):
            return [results[index] for index in self.indices]
        return [
            result
            for index in self.indices
            for result in results[num_outputs * bounds[index] : num_outputs * bounds[index + 1]]
        ]


def pack(
    sequences: Sequence[TokenIds],
    max_batch_tokens: int,
    count_cached: Callable[[TokenIds, str], int] = lambda *_: 0,
    salts: Sequence[str] = (),
    readouts: Sequence[Readouts] = (),
    images: Iterable[EncodedImage] = (),
) -> Packing:
    """Merge duplicates, sort sequences by shared prefix, and divide them into batches.

    Args:
        sequences: token ids of each sequence, none empty; of several readouts, the last one is the
            last token.
        max_batch_tokens: maximum number of tokens in a row, at least 1.
        count_cached: estimates how many of the first tokens of a sequence with a salt are in the
            prefix cache and will not be in the row; never its last token.
        salts: salt of each sequence; sequences with different salts share nothing, neither in a
            batch nor through the prefix cache. By default all have an empty salt.
        readouts: readouts of each sequence; by default all are read at their last token.
        images: images whose token ids the sequences have.
    """
    # In reverse order, a sequence follows those of which it is a prefix, and adds no tokens. Not a
    # set: a batch of the scheduler comes sorted, and sorting it again takes no time.
    inputs = list(
        zip(
            salts or [""] * len(sequences),
            sequences,
            readouts or [()] * len(sequences),
            strict=True,
        )
    )
    ordered = sorted(dict.fromkeys(inputs), reverse=True)
    indices = {sequence: index for index, sequence in enumerate(ordered)}
    shared = _count_shared(ordered)
    cached = [
        count_cached(ids[: read[0] + 1] if read else ids, salt) for salt, ids, read in ordered
    ]
    lengths = [len(sequence) for _, sequence, _ in ordered]
    images_by_key = {image.key: image for image in images}
    batches = tuple(
        _build_tree(ordered[start:stop], shared[start:stop], images_by_key)
        for start, stop in _find_cuts(lengths, shared, cached, max_batch_tokens)
    )
    return Packing(batches, tuple(indices[sequence] for sequence in inputs))


def split_in_half(tree: PrefixTree) -> tuple[PrefixTree, PrefixTree]:
    """Split a batch of several sequences into two batches, in the same order."""
    middle = len(tree.sequences) // 2
    inputs = list(zip(tree.salts, tree.sequences, tree.readouts, strict=True))
    left, right = (
        _build_tree(half, _count_shared(half), tree.images)
        for half in (inputs[:middle], inputs[middle:])
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


def _count_shared(ordered: list[_Input]) -> list[int]:
    """Return the length of the prefix that each sequence shares with the one before it."""
    return [
        0,
        *(
            common_prefix_length(left, right) if salt == other else 0
            for (salt, left, _), (other, right, _) in pairwise(ordered)
        ),
    ][: len(ordered)]


def _find_cuts(
    lengths: list[int], shared: list[int], cached: list[int], budget: int
) -> Iterator[tuple[int, int]]:
    """Yield start and stop index of each batch in the ordered sequences.

    Args:
        lengths: number of tokens of each sequence.
        shared: length of the prefix that each sequence shares with the one before it, in tokens.
        cached: length of the prefix of each sequence that is in the prefix cache, in tokens.
        budget: maximum number of tokens in the row of a batch of several sequences.
    """
    start = 0
    while start < len(lengths):
        # Tokens of the row of a batch of the first sequence, the first two, ...
        sizes = [lengths[start] - cached[start]]
        num_keys = lengths[start]
        stop = start + 1
        while stop < len(lengths):
            size = sizes[-1] + lengths[stop] - max(shared[stop], cached[stop])
            num_keys += lengths[stop] - shared[stop]
            if size > budget or num_keys > MAX_KEYS_PER_TOKEN * budget:
                break
            sizes.append(size)
            stop += 1
        if stop < len(lengths):
            # From the last cut to the first: among cuts of equal cost, the fullest batch wins.
            costs = {
                cut: SPLIT_PENALTY * max(0, shared[cut] - cached[cut])
                + budget
                - sizes[cut - start - 1]
                for cut in range(stop, start, -1)
            }
            stop = min(costs, key=costs.__getitem__)
        yield start, stop
        start = stop


def _build_tree(
    inputs: list[_Input], shared: list[int], images: Mapping[int, EncodedImage]
) -> PrefixTree:
    """Build the tree of consecutive sequences. `shared[0]` is ignored."""
    segments: list[TreeSegment] = []
    read_rows: list[tuple[int, ...]] = []
    path: list[int] = []  # indices of the segments that form the previous sequence
    num_tokens = 0
    for index, (_, sequence, positions) in enumerate(inputs):
        depth = shared[index] if index else 0
        while path and segments[path[-1]].depth >= depth:
            path.pop()
        if depth < len(sequence):
            parent = path[-1] if path else -1
            path.append(len(segments))
            segments.append(TreeSegment(num_tokens, depth, parent, index, sequence[depth:]))
            num_tokens = segments[-1].stop
        if positions:
            depths = [segments[i].depth for i in path]
            shifts = [segments[i].start - segments[i].depth for i in path]
            read_rows.append(tuple(p + shifts[bisect.bisect(depths, p) - 1] for p in positions))
        else:
            last = segments[path[-1]]
            read_rows.append((last.start + len(sequence) - 1 - last.depth,))
    salts, sequences, readouts = zip(*inputs, strict=True)
    return PrefixTree(
        sequences,
        tuple(segments),
        tuple(read_rows),
        num_tokens,
        salts=salts,
        readouts=readouts,
        images=images,
    )
