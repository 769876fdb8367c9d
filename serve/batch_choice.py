"""Which of the waiting sequences make the next batch. Pure; the queue is in `serve.batching`.

`rm_core.pack` cuts everything into batches at once; here only one is wanted, with the sequence that
waits longest in it, and the cost must not grow with what waits behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rm_core.packing import PLACES_PER_TOKEN, TokenIds, shared_start


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
        before = shared_start(ordered[left - 1], ordered[left]) if left > 0 else -1
        after = shared_start(ordered[right], ordered[right + 1]) if right + 1 < len(ordered) else -1
        lost = PLACES_PER_TOKEN * (max(before, 0) + max(after, 0)) + max_batch_tokens - size
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
