"""Heads: what maps the hidden state of a token to numbers, in float32.

In a product of matrices the last bits of a row depend on the number of rows, and a reward must not
depend on its neighbors. So heads use the two products here, whose result for a row does not depend
on other rows.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch

# A head's row is applied to so many hidden states at once, also to fewer.
_BLOCK = 64
# Rows of the vocabulary whose weights are converted to float32 at once.
_VOCABULARY_BLOCK = 8_192


@dataclass(frozen=True)
class Head(abc.ABC):
    """Maps hidden states after the final norm to numbers; its fields are moved with it."""

    num_outputs: ClassVar[int] = 1  # numbers for each hidden state
    description: str = field(default="", kw_only=True)  # what the head is, for people

    @abc.abstractmethod
    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[n, hidden_size]`, of any dtype, to float32 `[n, num_outputs]`."""

    def to(self, device: torch.device) -> Self:
        """Return the head on a device."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, part in parts.items():
            if isinstance(part, torch.Tensor | Head):
                parts[name] = part.to(device)
        return replace(self, **parts)


@dataclass(frozen=True)
class LinearHead(Head):
    """The product with one row of weights, plus a bias: `score` of classifiers, or a value head."""

    row: torch.Tensor  # float32 `[1, hidden_size]`
    bias: torch.Tensor | None  # float32 `[1]`; None without a bias

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        return _add_bias(multiply_by_rows(hidden, self.row), self.bias)


@dataclass(frozen=True)
class MlpHead(Head):
    """A linear layer, a ReLU and a row of weights, as of Qwen2.5-Math-RM and INF-ORM."""

    weight: torch.Tensor  # weight of the first layer, float32 `[size, hidden_size]`
    bias: torch.Tensor | None  # bias of the first layer, float32 `[size]`; None without a bias
    last: LinearHead  # second layer

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        inner = multiply_by_matrix(hidden, self.weight)
        if self.bias is not None:
            inner += self.bias
        return self.last.apply(inner.relu_())


@dataclass(frozen=True)
class CappedTokensHead(Head):
    """The capped logit of a token, minus that of a second: rows of a language model's head.

    Without a cap, the difference is one row (`build_row_head`).
    """

    rows: torch.Tensor  # rows of the tokens, float32 `[1 or 2, hidden_size]`
    bias: torch.Tensor | None  # float32 `[1 or 2]`; None without a bias
    softcap: float  # logits become `softcap * tanh(logit / softcap)`

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        logits = _cap(_add_bias(multiply_by_rows(hidden, self.rows), self.bias), self.softcap)
        return logits[:, :1] - logits[:, 1:] if len(self.rows) == 2 else logits


@dataclass(frozen=True)
class JudgeHead(Head):
    """Log-odds of the first of two labels of a generative judge, and the mass of both.

    The second output is the logarithm of the probability, among all tokens, that the reply has one
    of the two labels here.
    """

    num_outputs: ClassVar[int] = 2

    difference: Head  # head of the difference of the two logits
    # `[vocab_size, hidden_size]`, the language model's head, in the decoder's dtype.
    weight: torch.Tensor
    bias: torch.Tensor | None  # `[vocab_size]`; None without a bias
    softcap: float | None  # see `CappedTokensHead`; None without one
    labels: tuple[int, int]  # ids of the two labels

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        totals, at_labels = [], {}
        for start in range(0, len(self.weight), _VOCABULARY_BLOCK):
            rows = slice(start, start + _VOCABULARY_BLOCK)
            bias = None if self.bias is None else self.bias[rows]
            logits = _add_bias(multiply_by_matrix(hidden, self.weight[rows].float()), bias)
            logits = _cap(logits, self.softcap)
            totals.append(logits.logsumexp(1))
            for label in self.labels:
                if start <= label < start + logits.shape[1]:
                    at_labels[label] = logits[:, label - start]
        total = torch.stack(totals, dim=1).logsumexp(1)
        mass = torch.logaddexp(*(at_labels[label] for label in self.labels)) - total
        return torch.cat([self.difference.apply(hidden), mass.unsqueeze(1)], dim=1)


def build_row_head(
    weight: torch.Tensor, bias: torch.Tensor | None, factors: tuple[float, ...], description: str
) -> LinearHead:
    """Build the head of a weighted sum of labels, which is one row again.

    The weight is `[num_labels, hidden_size]`, of any dtype, the bias `[num_labels]`. Labels of
    factor 0 are left out; one label of factor 1 is its row, unchanged.
    """
    used = [index for index, factor in enumerate(factors) if factor]
    scale = torch.tensor([factors[index] for index in used], device=weight.device)
    row = (weight[used].float() * scale.unsqueeze(1)).sum(0, keepdim=True)
    total = None if bias is None else (bias[used].float() * scale).sum(0, keepdim=True)
    return LinearHead(row, total, description=description)


def multiply_by_rows(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Multiply hidden states `[n, size]` by float32 `[num_rows, size]`, in blocks of one shape."""
    missing = -len(hidden) % _BLOCK
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, missing))
    blocks = [
        torch.stack([(block.float() * row).sum(1) for row in rows], dim=1)
        for block in padded.split(_BLOCK)
    ]
    return torch.cat(blocks)[: len(hidden)]


def multiply_by_matrix(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply hidden states by a matrix, one hidden state at a time; see `multiply_by_rows`."""
    if not len(hidden):
        return hidden.new_empty(0, len(matrix), dtype=torch.float32)
    # Copied, since the start of a row in memory may decide about the order of a sum.
    return torch.stack([matrix @ row.float().clone() for row in hidden])


def _add_bias(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return logits if bias is None else logits + bias.float()


def _cap(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return the logits as Gemma's softcap limits them; unchanged without a softcap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
