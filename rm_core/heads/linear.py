"""A linear head with one output: `score` of transformers' classifiers, or a value head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.heads.base import multiply_by_rows


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The product with one row of weights, plus a bias; see `rm_core.heads.base.Head`."""

    row: torch.Tensor  # float32 `[1, hidden_size]`
    bias: torch.Tensor | None  # float32 `[1]`; None without a bias
    description: str  # see `Head`

    @property
    def num_outputs(self) -> int:
        """See `Head`."""
        return 1

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        logits = multiply_by_rows(hidden, self.row)
        return logits if self.bias is None else logits + self.bias

    def to(self, device: torch.device) -> LinearHead:
        """See `Head`."""
        bias = None if self.bias is None else self.bias.to(device)
        return LinearHead(self.row.to(device), bias, self.description)


def build_row_head(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: tuple[float, ...],
    description: str,
) -> LinearHead:
    """Build the head of a weighted sum of labels, which is one row again.

    The weight is `[num_labels, hidden_size]`, of any dtype, the bias `[num_labels]`.
    """
    combined = combine_labels(weight, bias, factors)
    return LinearHead(*combined, description)


def combine_labels(
    weight: torch.Tensor, bias: torch.Tensor | None, factors: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weighted sum of a layer's rows `[1, size]` and of its biases `[1]`, in float32.

    Labels of factor 0 are left out; one label of factor 1 is its row, unchanged.
    """
    used = [index for index, factor in enumerate(factors) if factor]
    scale = torch.tensor([factors[index] for index in used], device=weight.device)
    row = (weight[used].float() * scale.unsqueeze(1)).sum(0, keepdim=True)
    return row, None if bias is None else (bias[used].float() * scale).sum(0, keepdim=True)
