"""Cuts the token sequences of one request into calls of the backend, and puts answers in order.

Few calls, so that the backend's queue has something to choose from; but none too large to be sent,
and enough of them for every replica to get a share. What shares its start stays in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rm_core import pack
from rm_core.packing import Packing, TokenIds

T = TypeVar("T")

# Of batches in a piece: a replica that is lost takes no more of a request with it.
_MAX_BATCHES = 8
# A token takes up to 5 bytes on its way to a replica; under Ray's own limit a call fails at 4 MiB.
_MAX_TOKENS = 2**19


@dataclass(frozen=True, slots=True)
class Pieces:
    """Sequences, each once, in pieces.

    Attributes:
        sequences: of each piece.
        packing: where each of the request's sequences went.
    """

    sequences: tuple[tuple[TokenIds, ...], ...]
    packing: Packing

    def restore(self, answers: Sequence[Sequence[T]]) -> list[T]:
        """Results in the order of the request's sequences.

        Args:
            answers: for each piece, the results of its sequences in order.
        """
        for sent, got in zip(self.sequences, answers, strict=True):
            assert len(sent) == len(got)
        return self.packing.restore([result for answer in answers for result in answer])


def split(sequences: Sequence[TokenIds], max_batch_tokens: int, num_replicas: int) -> Pieces:
    """Merge duplicates and cut into pieces.

    Args:
        sequences: token ids, none empty.
        max_batch_tokens: the budget of a batch; less is never cut.
        num_replicas: how many can work on the pieces at the same time.
    """
    share = sum(map(len, sequences)) // num_replicas
    size = max(max_batch_tokens, min(share, _MAX_BATCHES * max_batch_tokens))
    packing = pack(sequences, size)
    pieces = (piece for tree in packing.batches for piece in _small_enough(tree.sequences))
    return Pieces(tuple(pieces), packing)


def _small_enough(sequences: Sequence[TokenIds]) -> Iterator[tuple[TokenIds, ...]]:
    piece: list[TokenIds] = []
    num_tokens = 0
    for sequence in sequences:
        if piece and num_tokens + len(sequence) > _MAX_TOKENS:
            yield tuple(piece)
            piece, num_tokens = [], 0
        piece.append(sequence)
        num_tokens += len(sequence)
    yield tuple(piece)
