"""Random token sequences of `make gpu-check`: one hard tree for parity, pairs and groups for speed.

Lengths are those of the true models; a dry run divides all of them by the same number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rm_core.packing import PrefixTree, TokenIds, pack

LENGTHS = (512, 1024, 2048, 4096)
"""Of whole conversations, timed."""
FIRST_ID = 3  # below are padding, BOS and EOS of the configs


@dataclass(frozen=True)
class Scale:
    """Lengths, in tokens.

    Attributes:
        divisor: 1 for the true lengths.
        row: most tokens of a timed batch.
        fixed_row: what every row is filled up to in the batch-invariant mode.
        window: Gemma-2's.
        matrix: rows and columns of the product whose rate everything is a share of.
        cell_s: seconds that the timed runs of a cell may take together; one is always made.
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
    """Random token ids.

    Args:
        vocab_size: ids stay below.
        scale: divides the lengths asked for.
    """

    def __init__(self, vocab_size: int, scale: Scale) -> None:
        self._random = random.Random(0)
        self._vocab_size = vocab_size
        self._divisor = scale.divisor

    def __call__(self, low: int, high: int | None = None) -> TokenIds:
        """Between `low` and `high` ids, or exactly `low`; at least one."""
        number = max(1, self._random.randint(low, high or low) // self._divisor)
        return tuple(self._random.choices(range(FIRST_ID, self._vocab_size), k=number))


def parity_sequences(draw: Draw) -> list[TokenIds]:
    """Prefixes shared at several depths, a sequence that starts another, single-token differences.

    The longest is longer than Gemma-2's window, and another leaves it behind the window. Every
    length is drawn so that runs start and end within the kernels' blocks.
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
        prompt,  # starts all of the above
        talk[: len(prompt) + len(response) // 2],  # ends in the middle of a run
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


def _changed(sequence: TokenIds, place: int) -> TokenIds:
    """The sequence with one token that is another one."""
    other = FIRST_ID if sequence[place] != FIRST_ID else FIRST_ID + 1
    return (*sequence[:place], other, *sequence[place + 1 :])


def pair(draw: Draw, length: int) -> list[TokenIds]:
    """Two conversations of up to `length` tokens, the first half of which is their prompt."""
    prompt = draw(length // 2)
    return [prompt + draw(length * 3 // 8, length // 2) for _ in range(2)]


def group(draw: Draw, length: int) -> list[TokenIds]:
    """Sixteen responses of 64 to 128 tokens to one prompt, in all up to `length` tokens each."""
    prompt = draw(length - 128)
    return [prompt + draw(64, 128) for _ in range(16)]


KINDS = {"pairs": pair, "groups": group}


def workload(kind: str, length: int, draw: Draw, scale: Scale) -> tuple[list[TokenIds], PrefixTree]:
    """As many pairs or groups as fit into a timed batch, at least one, and the batch.

    Args:
        kind: of `KINDS`.
        length: of a conversation, before the scale divides it.
        draw: makes the tokens.
        scale: gives the limit of the batch.
    """
    drawn = KINDS[kind](draw, length)
    (tree,) = pack(drawn, 10**9).batches
    while True:
        more = drawn + KINDS[kind](draw, length)
        (larger,) = pack(more, 10**9).batches
        if larger.num_tokens > scale.row:
            return drawn, tree
        drawn, tree = more, larger
