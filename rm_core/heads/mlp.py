"""A head of two linear layers with a ReLU between them, as of Qwen2.5-Math-RM and INF-ORM."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.heads.base import multiply_by_matrix
from rm_core.heads.linear import LinearHead


@dataclass(frozen=True, slots=True)
class MlpHead:
    """A linear layer, a ReLU and a row of weights; see `rm_core.heads.base.Head`."""

    weight: torch.Tensor  # weight of the first layer, float32 `[size, hidden_size]`
    bias: torch.Tensor | None  # bias of the first layer, float32 `[size]`; None without a bias
    last: LinearHead  # second layer

    @property
    def num_outputs(self) -> int:
        """See `Head`."""
        return self.last.num_outputs

    @property
    def description(self) -> str:
        """See `Head`."""
        return self.last.description

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        inner = multiply_by_matrix(hidden, self.weight)
        if self.bias is not None:
            inner += self.bias
        return self.last.apply(inner.relu_())

    def to(self, device: torch.device) -> MlpHead:
        """See `Head`."""
        bias = None if self.bias is None else self.bias.to(device)
        return MlpHead(self.weight.to(device), bias, self.last.to(device))
