"""Logits of one or two tokens: rows of a language model's head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rm_core.heads.base import multiply_by_rows


@dataclass(frozen=True, slots=True)
class CappedTokensHead:
    """The capped logit of a token, minus that of a second; see `rm_core.heads.base.Head`.

    Without a cap, the difference is one row (`rm_core.heads.linear`).
    """

    rows: torch.Tensor  # rows of the tokens, float32 `[1 or 2, hidden_size]`
    bias: torch.Tensor | None  # float32 `[1 or 2]`; None without a bias
    softcap: float  # logits become `softcap * tanh(logit / softcap)`
    description: str  # see `Head`

    @property
    def num_outputs(self) -> int:
        """See `Head`."""
        return 1

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Head`."""
        logits = cap(add_bias(multiply_by_rows(hidden, self.rows), self.bias), self.softcap)
        return logits[:, :1] - logits[:, 1:] if len(self.rows) == 2 else logits

    def to(self, device: torch.device) -> CappedTokensHead:
        """See `Head`."""
        bias = None if self.bias is None else self.bias.to(device)
        return CappedTokensHead(self.rows.to(device), bias, self.softcap, self.description)


def add_bias(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the logits plus the bias, if there is one."""
    return logits if bias is None else logits + bias.float()


def cap(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return the logits as Gemma's softcap limits them; unchanged without a softcap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
