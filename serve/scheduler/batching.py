"""Which waiting sequences form the next batch. Pure; `serve.scheduler.dispatcher` has the queue.

`rm_core.pack` cuts everything into batches at once, where least is shared; here only one batch is
wanted, what waits comes in the order in which it is to be taken, and the cost must not grow with
what waits behind.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate, pairwise

from rm_core.packing import SPLIT_PENALTY, TokenIds, common_prefix_length

# A sequence goes along with one whose turn it is, before its own turn, if they share at least this
# part of what not everything that waits has in common: then it costs little, and much if left.
_MIN_SHARED_FRACTION = 0.25


class Batch:
    """Sequences and the size of their prefix tree.

    Args:
        max_tokens: most tokens of the tree, unless it is of a single sequence.

    Attributes:
        ordered: the sequences, sorted.
        members: the same.
        num_tokens: of the tree.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.sequences: list[TokenIds] = []
        self.members: set[TokenIds] = set()
        self.num_tokens = 0

    def add(self, sequence: TokenIds) -> bool:
        """Add it if it fits, or is the first; whether it is in the batch now."""
        if sequence in self.members:
            return True
        new = self._count_new_tokens(sequence)
        if self.members and self.num_tokens + new > self._max_tokens:
            return False
        insort(self.sequences, sequence)
        self.members.add(sequence)
        self.num_tokens += new
        return True

    def fits(self, group: Sequence[TokenIds]) -> bool:
        """Whether a whole group, in sorted order, can be added."""
        new, before = 0, group[0][:0]
        for sequence in group:
            if sequence not in self.members:
                new += min(
                    self._count_new_tokens(sequence),
                    len(sequence) - common_prefix_length(before, sequence),
                )
                before = sequence
        return self.num_tokens + new <= self._max_tokens

    def is_worth_closing(self, group: Sequence[TokenIds], common: int) -> bool:
        """Whether cutting the group would cost more than the places left empty without it."""
        if len(group) == 1:
            return False
        encoded_twice = min(map(common_prefix_length, group, group[1:])) - common
        return encoded_twice * SPLIT_PENALTY > self._max_tokens - self.num_tokens

    def _count_new_tokens(self, sequence: TokenIds) -> int:
        place = bisect_left(self.sequences, sequence)
        neighbours = self.sequences[max(0, place - 1) : place + 1]
        return len(sequence) - max(
            (common_prefix_length(n, sequence) for n in neighbours), default=0
        )


def form_batch(pending: Sequence[TokenIds], max_batch_tokens: int) -> Batch:
    """The first sequences with those that share most with them, as many as fit into a batch.

    Args:
        waiting: distinct, none empty, in the order of their turns; the first has to be in the
            batch.
        max_batch_tokens: most tokens of the prefix tree; a longer sequence goes alone.
    """
    ordered = sorted(pending)
    common = common_prefix_length(ordered[0], ordered[-1]) if len(ordered) > 1 else 0
    batch = Batch(max_batch_tokens)
    for sequence in pending:
        if sequence in batch.members:
            continue
        group = _find_group(ordered, bisect_left(ordered, sequence), common)
        if batch.members and not batch.fits(group):
            # Rather a batch that is not full than a prompt that is encoded twice.
            if batch.is_worth_closing(group, common):
                break
            if not batch.add(sequence):
                break
        elif not batch.members:
            batch.add(sequence)
        for member in group:
            batch.add(member)
    return batch


def form_mixed_batch(
    small: Sequence[TokenIds], pending: Sequence[TokenIds], max_batch_tokens: int
) -> Batch:
    """As `choose`; but what large requests add to small ones is at most half a batch.

    Else a small request would wait for a whole batch of a large one, and then be in another.

    Args:
        small: those of `waiting` that belong to small requests, in the same order.
        waiting: as of `choose`.
        max_batch_tokens: as of `choose`.
    """
    if not small or len(small) == len(pending) or small[0] != pending[0]:
        return form_batch(pending, max_batch_tokens)
    chosen = form_batch(small, max_batch_tokens)
    half = max_batch_tokens // 2
    return chosen if chosen.num_tokens >= half else form_batch(pending, half)


def _find_group(ordered: Sequence[TokenIds], index: int, common: int) -> Sequence[TokenIds]:
    """The sequences that go along with one of them, itself included, in their order."""

    def kin(left: TokenIds, right: TokenIds) -> bool:
        shortest = min(len(left), len(right)) - common
        return common_prefix_length(left, right) - common > _MIN_SHARED_FRACTION * shortest

    start, stop = index, index + 1
    while start > 0 and kin(ordered[start - 1], ordered[start]):
        start -= 1
    while stop < len(ordered) and kin(ordered[stop - 1], ordered[stop]):
        stop += 1
    return ordered[start:stop]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to the total."""
    whole = sum(weights)
    marks = [total * part // whole for part in accumulate(weights, initial=0)]
    return [stop - start for start, stop in pairwise(marks)]


def compute_tree_size(sequences: Sequence[TokenIds]) -> int:
    """Tokens of the prefix tree of distinct sequences, given in sorted order."""
    shared = sum(common_prefix_length(before, after) for before, after in pairwise(sequences))
    return sum(map(len, sequences)) - shared
