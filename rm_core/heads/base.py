"""Interface of the heads, and products whose result for a row does not depend on other rows.

In a product of matrices the last bits of a row depend on the number of rows, and a reward must not
depend on its neighbors.
"""

from __future__ import annotations

from typing import Protocol

import torch

# A head's row is applied to so many hidden states at once, also to fewer.
_BLOCK = 64


class Head(Protocol):
    """Maps hidden states after the final norm to numbers.

    Attributes:
        num_outputs: numbers for each hidden state.
        description: what the head is, for people.
    """

    @property
    def num_outputs(self) -> int:
        """See above."""
        ...

    @property
    def description(self) -> str:
        """See above."""
        ...

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[n, hidden_size]`, of any dtype, to float32 `[n, num_outputs]`."""
        ...

    def to(self, device: torch.device) -> Head:
        """Return the head on a device."""
        ...


def multiply_by_rows(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Multiply hidden states by a few rows of weights, as sums in blocks of one shape.

    Args:
        hidden: `[n, size]`, of any dtype.
        rows: float32 `[num_rows, size]`.

    Returns:
        float32 `[n, num_rows]`.
    """
    missing = -len(hidden) % _BLOCK
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, missing))
    blocks = [
        torch.stack([(block.float() * row).sum(1) for row in rows], dim=1)
        for block in padded.split(_BLOCK)
    ]
    return torch.cat(blocks)[: len(hidden)]


def multiply_by_matrix(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply hidden states by a matrix, one hidden state at a time.

    Args:
        hidden: `[n, size]`, of any dtype.
        matrix: float32 `[num_rows, size]`.

    Returns:
        float32 `[n, num_rows]`.
    """
    if not len(hidden):
        return hidden.new_empty(0, len(matrix), dtype=torch.float32)
    # Copied, since the start of a row in memory may decide about the order of a sum.
    return torch.stack([matrix @ row.float().clone() for row in hidden])
