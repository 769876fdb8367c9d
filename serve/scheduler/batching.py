"""Forms the next batch from pending sequences. Pure: `serve.scheduler.dispatcher` has the queue.

A batch has room for what is left to compute: `PromptIndex` estimates which prompts are in the
prefix caches of a model's replicas. Other gateways use the replicas too, and a replica may have
been replaced, so a replica computes what it does not have.

`rm_core.pack` splits all sequences into batches at once, where they share the least. Here only one
batch is needed, the pending sequences come in scheduling order, and the cost must not grow with the
length of the queue.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType

from rm_core.packing import (
    MAX_KEYS_PER_TOKEN,
    SPLIT_PENALTY,
    TokenIds,
    common_prefix_length,
)

# A sequence joins the batch of another one before its turn if the two share more than this fraction
# of the shorter one, the prefix common to all pending sequences not counted: it then costs little
# in this batch, and much in a later one.
_MIN_SHARED_FRACTION = 0.25
NOTHING_CACHED: Mapping[TokenIds, int] = MappingProxyType({})
"""Of a model without a prefix cache."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The first tokens of a sequence, which other sequences may share.

    Attributes:
        key: hash of the token ids.
        num_tokens: number of tokens.
    """

    key: int
    num_tokens: int

    @classmethod
    def of(cls, sequence: TokenIds, num_tokens: int, salt: str) -> Prompt:
        """Return the prompt of a sequence with a salt, its first `num_tokens` tokens."""
        return cls(hash((salt, sequence[:num_tokens])), num_tokens)


class PromptIndex:
    """The prompts that were sent to replicas last, as many as a prefix cache holds.

    Attributes:
        max_tokens: maximum number of tokens in the prefix cache of a replica; 0 without one.
    """

    def __init__(self) -> None:
        self.max_tokens = 0
        # Each with the id of the replica that has it, or is assumed to get it.
        self._prompts: OrderedDict[Prompt, str] = OrderedDict()
        self._num_tokens = 0

    def clear(self) -> None:
        """Forget all prompts: the caches are empty now."""
        self._prompts.clear()
        self._num_tokens = 0

    def count_cached(self, prompt: Prompt | None) -> int:
        """Estimate how many tokens of a prompt need not be computed: all or none."""
        return prompt.num_tokens if prompt is not None and prompt in self._prompts else 0

    def get_replica(self, prompt: Prompt | None) -> str:
        """Return the id of the replica that has a prompt, or should get it; empty if unknown."""
        return "" if prompt is None else self._prompts.get(prompt, "")

    def find_replica(self, prompts: Iterable[Prompt | None]) -> str:
        """Return the id of the replica that has most tokens of the prompts; empty if unknown."""
        num_tokens: Counter[str] = Counter()
        for prompt in set(prompts):
            if prompt is not None and (replica := self._prompts.get(prompt)):
                num_tokens[replica] += prompt.num_tokens
        return max(num_tokens, key=num_tokens.__getitem__, default="")

    def add(self, prompt: Prompt, replica: str = "") -> None:
        """Record that a sequence with this prompt was sent, or that a replica has computed it."""
        if prompt not in self._prompts:
            self._num_tokens += prompt.num_tokens
        self._prompts[prompt] = replica or self._prompts.get(prompt, "")
        self._prompts.move_to_end(prompt)
        while self._num_tokens > self.max_tokens:
            oldest, _ = self._prompts.popitem(last=False)
            self._num_tokens -= oldest.num_tokens


class Batch:
    """Sequences and the size of their prefix tree.

    Args:
        max_tokens: maximum number of tokens to compute; a single sequence may exceed it.
        cached: number of first tokens of sequences that are in the prefix cache, where any are.

    Attributes:
        sequences: sequences of the batch, sorted.
        members: the same sequences as a set.
        num_tokens: number of tokens of the tree that are to be computed.
        num_keys: number of tokens of the tree.
    """

    def __init__(self, max_tokens: int, cached: Mapping[TokenIds, int] = NOTHING_CACHED) -> None:
        self._max_tokens = max_tokens
        self._cached = cached
        self.sequences: list[TokenIds] = []
        self.members: set[TokenIds] = set()
        self.num_tokens = 0
        self.num_keys = 0

    def add(self, sequence: TokenIds) -> bool:
        """Add a sequence if it fits or is the first; return whether the batch contains it."""
        if sequence in self.members:
            return True
        num_shared = self._count_shared_tokens(sequence)
        num_new = len(sequence) - max(num_shared, self._cached.get(sequence, 0))
        num_new_keys = len(sequence) - num_shared
        if self.members and not self._has_room(num_new, num_new_keys):
            return False
        insort(self.sequences, sequence)
        self.members.add(sequence)
        self.num_tokens += num_new
        self.num_keys += num_new_keys
        return True

    def fits(self, group: Sequence[TokenIds]) -> bool:
        """Return whether a whole group, given in sorted order, fits."""
        num_new = num_new_keys = 0
        previous = group[0][:0]
        for sequence in group:
            if sequence not in self.members:
                num_shared = max(
                    self._count_shared_tokens(sequence), common_prefix_length(previous, sequence)
                )
                num_new += len(sequence) - max(num_shared, self._cached.get(sequence, 0))
                num_new_keys += len(sequence) - num_shared
                previous = sequence
        return self._has_room(num_new, num_new_keys)

    def is_worth_closing(self, group: Sequence[TokenIds], common: int) -> bool:
        """Return whether splitting the group costs more than the room left unused without it."""
        if len(group) == 1:
            return False
        num_cached = min(self._cached.get(sequence, 0) for sequence in group)
        encoded_twice = min(map(common_prefix_length, group, group[1:])) - max(common, num_cached)
        return encoded_twice * SPLIT_PENALTY > self._max_tokens - self.num_tokens

    def _has_room(self, num_tokens: int, num_keys: int) -> bool:
        return (
            self.num_tokens + num_tokens <= self._max_tokens
            and self.num_keys + num_keys <= MAX_KEYS_PER_TOKEN * self._max_tokens
        )

    def _count_shared_tokens(self, sequence: TokenIds) -> int:
        index = bisect_left(self.sequences, sequence)
        neighbors = self.sequences[max(0, index - 1) : index + 1]
        return max((common_prefix_length(n, sequence) for n in neighbors), default=0)


def form_batch(
    pending: Sequence[TokenIds],
    max_batch_tokens: int,
    cached: Mapping[TokenIds, int] = NOTHING_CACHED,
) -> Batch:
    """Form a batch of the first sequences and those that share most with them, as many as fit.

    Args:
        pending: distinct sequences in scheduling order, none empty; the batch always contains the
            first.
        max_batch_tokens: maximum number of tokens to compute; a longer sequence goes alone.
        cached: see `Batch`.
    """
    ordered = sorted(pending)
    common = common_prefix_length(ordered[0], ordered[-1]) if len(ordered) > 1 else 0
    batch = Batch(max_batch_tokens, cached)
    for sequence in pending:
        if sequence in batch.members:
            continue
        group = _find_group(ordered, bisect_left(ordered, sequence), common)
        if batch.members and not batch.fits(group):
            # Prefer an underfull batch to encoding a shared prompt twice.
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
    small: Sequence[TokenIds],
    pending: Sequence[TokenIds],
    max_batch_tokens: int,
    cached: Mapping[TokenIds, int] = NOTHING_CACHED,
) -> Batch:
    """Form a batch as `form_batch` does, but let large requests fill it to at most half.

    Otherwise a small request would wait for a whole batch of a large one, and then be in another.

    Args:
        small: sequences of `pending` that belong to small requests, in the same order.
        pending: see `form_batch`.
        max_batch_tokens: see `form_batch`.
        cached: see `Batch`.
    """
    if not small or len(small) == len(pending) or small[0] != pending[0]:
        return form_batch(pending, max_batch_tokens, cached)
    batch = form_batch(small, max_batch_tokens, cached)
    half = max_batch_tokens // 2
    return batch if batch.num_tokens >= half else form_batch(pending, half, cached)


def _find_group(ordered: Sequence[TokenIds], index: int, common: int) -> Sequence[TokenIds]:
    """Return the sequences that join `ordered[index]` in a batch, itself included, in order."""

    def are_related(left: TokenIds, right: TokenIds) -> bool:
        shortest = min(len(left), len(right)) - common
        return common_prefix_length(left, right) - common > _MIN_SHARED_FRACTION * shortest

    start, stop = index, index + 1
    while start > 0 and are_related(ordered[start - 1], ordered[start]):
        start -= 1
    while stop < len(ordered) and are_related(ordered[stop - 1], ordered[stop]):
        stop += 1
    return ordered[start:stop]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total into whole numbers in proportion to the weights."""
    total_weight = sum(weights)
    bounds = [total * running // total_weight for running in accumulate(weights, initial=0)]
    return [stop - start for start, stop in pairwise(bounds)]


def compute_tree_size(sequences: Sequence[TokenIds]) -> int:
    """Count the tokens of the prefix tree of sequences, given in sorted order."""
    shared = sum(common_prefix_length(before, after) for before, after in pairwise(sequences))
    return sum(map(len, sequences)) - shared
