"""Which of the waiting sequences make the next batch. Pure; the queue is in `serve.batching`.

`rm_core.pack` cuts everything into batches at once; here only one is wanted, with the sequence that
waits longest in it, and the cost must not grow with what waits behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rm_core.packing import TokenIds

# As in `rm_core.packing`: a token that has to be encoded again in another batch counts as this many
# places of a batch left empty.
_PLACES_PER_TOKEN = 64


def choose(waiting: Sequence[TokenIds], max_batch_tokens: int) -> list[TokenIds]:
    """The first sequence with those that share most with it, as many as fit into a batch.

    Args:
        waiting: distinct, none empty; the first has to be in the batch.
        max_batch_tokens: most tokens of the prefix tree; a longer sequence goes alone.
    """
    ordered = sorted(waiting)
    left = right = bisect_left(ordered, waiting[0])  # the batch: ordered[left : right + 1]
    size = len(waiting[0])
    least, chosen = float("inf"), (left, right)
    while True:
        # What a neighbour shares with the batch is what it shares with the one at that end.
        before = _shared_start(ordered[left - 1], ordered[left]) if left > 0 else -1
        after = (
            _shared_start(ordered[right], ordered[right + 1]) if right + 1 < len(ordered) else -1
        )
        lost = _PLACES_PER_TOKEN * (max(before, 0) + max(after, 0)) + max_batch_tokens - size
        if lost <= least:
            least, chosen = lost, (left, right)
        if before == after == -1:
            break
        if after > before:
            right += 1
            size += len(ordered[right]) - after
        else:
            left -= 1
            size += len(ordered[left]) - before
        if size > max_batch_tokens:
            break
    return ordered[chosen[0] : chosen[1] + 1]


def _shared_start(left: TokenIds, right: TokenIds) -> int:
    """How many tokens two sequences have in common at their start."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # left[:low] is shared, left[: high + 1] is not
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
