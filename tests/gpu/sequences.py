"""Random token sequences of `make gpu-check`: a difficult tree for parity, pairs, groups for speed.

Lengths are for the true models; a dry run divides all lengths by the same number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rm_core.packing import PrefixTree, TokenIds, pack

LENGTHS = (512, 1024, 2048, 4096)
"""Lengths of complete conversations that are timed."""
FIRST_ID = 3  # lower ids are padding, BOS and EOS of the configs


@dataclass(frozen=True)
class Scale:
    """Lengths, in tokens.

    Attributes:
        divisor: divisor of the lengths; 1 for the true lengths.
        row: maximum number of tokens of a timed batch.
        fixed_row: length to which every row is padded in the batch-invariant mode.
        window: sliding window of Gemma-2.
        matrix: rows and columns of the product whose rate is the matrix rate.
        cell_s: seconds that the timed runs of a cell may take together; at least one is made.
    """

    divisor: int = 1

    @property
    def row(self) -> int:
        return 16_384 // self.divisor

    @property
    def fixed_row(self) -> int:
        return 8192 // self.divisor

    @property
    def window(self) -> int:
        return 4096 // self.divisor

    @property
    def matrix(self) -> int:
        return 8192 // self.divisor

    @property
    def cell_s(self) -> float:
        return 1.5 if self.divisor == 1 else 0.0


TRUE = Scale()


class Draw:
    """Draws random token ids.

    Args:
        vocab_size: upper bound of the ids, exclusive.
        scale: scale of the requested lengths.
    """

    def __init__(self, vocab_size: int, scale: Scale) -> None:
        self._random = random.Random(0)
        self._vocab_size = vocab_size
        self._divisor = scale.divisor

    def __call__(self, low: int, high: int | None = None) -> TokenIds:
        """Draw between `low` and `high` ids, or exactly `low`; at least one."""
        number = max(1, self._random.randint(low, high or low) // self._divisor)
        return tuple(self._random.choices(range(FIRST_ID, self._vocab_size), k=number))


def build_parity_sequences(draw: Draw) -> list[TokenIds]:
    """Build sequences with prefixes shared at several depths and single-token differences.

    Some sequences are prefixes of others. The longest sequence is longer than Gemma-2's window, and
    another branches from it behind the window. Lengths are chosen so that segments start and end
    within the kernels' blocks.
    """
    prompt, response, long = draw(700), draw(300), draw(4608)
    talk = prompt + response
    deeper = talk[: len(talk) - 2] + draw(130)
    return [
        talk,
        deeper,
        deeper[:-1] + draw(1),
        deeper + draw(65),
        prompt + draw(257),
        prompt,  # prefix of all sequences above
        talk[: len(prompt) + len(response) // 2],  # ends in the middle of a segment
        _changed(talk, len(prompt) + len(response) // 100),
        _changed(talk, 0),
        _changed(talk, len(talk) - 1),
        long,
        long[: len(long) - len(long) // 20] + draw(150),
        long[: len(long) // 40] + draw(200),
        draw(129),
        draw(17),
        draw(1),
    ]


def _changed(sequence: TokenIds, index: int) -> TokenIds:
    """Return the sequence with one token replaced."""
    other = FIRST_ID if sequence[index] != FIRST_ID else FIRST_ID + 1
    return (*sequence[:index], other, *sequence[index + 1 :])


def pair(draw: Draw, length: int) -> list[TokenIds]:
    """Draw two conversations of up to `length` tokens, half of which are the shared prompt."""
    prompt = draw(length // 2)
    return [prompt + draw(length * 3 // 8, length // 2) for _ in range(2)]


def group(draw: Draw, length: int) -> list[TokenIds]:
    """Draw 16 responses of 64 to 128 tokens to one prompt; up to `length` tokens with it."""
    prompt = draw(length - 128)
    return [prompt + draw(64, 128) for _ in range(16)]


KINDS = {"pairs": pair, "groups": group}


def workload(kind: str, length: int, draw: Draw, scale: Scale) -> tuple[list[TokenIds], PrefixTree]:
    """Draw as many pairs or groups as fit into a timed batch, at least one; return the batch too.

    Args:
        kind: a key of `KINDS`.
        length: length of a conversation, before it is divided by the scale.
        draw: source of tokens.
        scale: scale with the limit of the batch.
    """
    drawn = KINDS[kind](draw, length)
    (tree,) = pack(drawn, 10**9).batches
    while True:
        more = drawn + KINDS[kind](draw, length)
        (larger,) = pack(more, 10**9).batches
        if larger.num_tokens > scale.row:
            return drawn, tree
        drawn, tree = more, larger
