"""The head of a generative judge, read at the first token of its verdict."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.heads.base import Head, multiply_by_matrix
from rm_core.heads.token_logits import add_bias, cap

# Rows of the vocabulary whose weights are converted to float32 at once.
_VOCABULARY_BLOCK = 8_192


@dataclass(frozen=True, slots=True)
class JudgeHead:
    """Log-odds of the first of two labels, and the mass of both; see `rm_core.heads.base.Head`.

    The second output is the logarithm of the probability, among all tokens, that the reply has one
    of the two labels here.
    """

    difference: Head  # head of the difference of the two logits
    # `[vocab_size, hidden_size]`, the language model's head, in the decoder's dtype.
    weight: torch.Tensor
    bias: torch.Tensor | None  # `[vocab_size]`; None without a bias
    softcap: float | None  # see `cap`
    labels: tuple[int, int]  # ids of the two labels

    @property
    def num_outputs(self) -> int:
        """See `Head`."""
        return 2

    @property
    def description(self) -> str:
        """See `Head`."""
        return self.difference.description

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        totals, at_labels = [], {}
        for start in range(0, len(self.weight), _VOCABULARY_BLOCK):
            rows = slice(start, start + _VOCABULARY_BLOCK)
            logits = multiply_by_matrix(hidden, self.weight[rows].float())
            logits = cap(
                add_bias(logits, None if self.bias is None else self.bias[rows]), self.softcap
            )
            totals.append(logits.logsumexp(1))
            for label in self.labels:
                if start <= label < start + logits.shape[1]:
                    at_labels[label] = logits[:, label - start]
        total = torch.stack(totals, dim=1).logsumexp(1)
        mass = torch.logaddexp(*(at_labels[label] for label in self.labels)) - total
        return torch.cat([self.difference.apply(hidden), mass.unsqueeze(1)], dim=1)

    def to(self, device: torch.device) -> JudgeHead:
        """See `Head`."""
        bias = None if self.bias is None else self.bias.to(device)
        return JudgeHead(
            self.difference.to(device), self.weight.to(device), bias, self.softcap, self.labels
        )
