"""What a gateway sends to a replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from rm_core.packing import TokenIds


@dataclass(frozen=True, slots=True)
class SequenceBatch(Sequence[TokenIds]):
    """The sequences of a batch. Is sent between processes.

    Attributes:
        sequences: token ids of each sequence, none empty.
        salts: salt of each sequence, see `rm_core.packing.pack`; empty if all have the same one.
        preferred_replica: id of the replica whose prefix cache has most of the prompts; empty if
            any replica will do.
    """

    sequences: tuple[TokenIds, ...]
    salts: tuple[str, ...] = ()
    preferred_replica: str = ""

    @overload
    def __getitem__(self, index: int) -> TokenIds: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenIds, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenIds | tuple[TokenIds, ...]:
        return self.sequences[index]

    def __len__(self) -> int:
        return len(self.sequences)


def get_salts(sequences: Sequence[TokenIds]) -> tuple[str, ...]:
    """Return the salt of each sequence of a batch, or nothing if all have the same one."""
    return sequences.salts if isinstance(sequences, SequenceBatch) else ()
