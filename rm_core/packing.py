"""From token sequences to batches under a token budget, and back. Pure Python, no torch.

Identical sequences are scored once. Nothing here pads: a batch is a list of sequences, and how
they go through the model is the business of `rm_core.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

TokenIds: TypeAlias = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Packing:
    """Batches of distinct sequences, and where each input went.

    Attributes:
        batches: distinct sequences, grouped; a batch is over the budget only if it holds a
            single sequence that is.
        places: `[num_inputs]`, index of each input among all sequences of all batches in order.
    """

    batches: tuple[tuple[TokenIds, ...], ...]
    places: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all batches together."""
        return sum(len(sequence) for batch in self.batches for sequence in batch)

    def restore(self, results: Sequence[T]) -> list[T]:
        """Results in the order of the inputs.

        Args:
            results: one for each sequence of each batch, in order.
        """
        assert len(results) == sum(len(batch) for batch in self.batches)
        return [results[place] for place in self.places]


def pack(sequences: Sequence[TokenIds], max_batch_tokens: int) -> Packing:
    """Merge duplicates and fill batches greedily, in order of first appearance.

    Args:
        sequences: token ids, none empty.
        max_batch_tokens: the budget, at least 1.
    """
    distinct: dict[TokenIds, int] = {}
    places = tuple(distinct.setdefault(sequence, len(distinct)) for sequence in sequences)
    batches: list[tuple[TokenIds, ...]] = []
    batch: list[TokenIds] = []
    num_tokens = 0
    for sequence in distinct:
        if batch and num_tokens + len(sequence) > max_batch_tokens:
            batches.append(tuple(batch))
            batch, num_tokens = [], 0
        batch.append(sequence)
        num_tokens += len(sequence)
    if batch:
        batches.append(tuple(batch))
    return Packing(batches=tuple(batches), places=places)
