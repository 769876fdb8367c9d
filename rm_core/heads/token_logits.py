"""Logits of one or two tokens: rows of a language model's head, and the ids of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.errors import ModelLoadError
from rm_core.heads.base import multiply_by_rows


@dataclass(frozen=True, slots=True)
class CappedTokensHead:
    """The capped logit of a token, minus that of a second; see `rm_core.heads.base.Head`.

    Without a cap, the difference is one row (`rm_core.heads.linear`).

    Attributes:
        rows: rows of the tokens, float32 `[1 or 2, hidden_size]`.
        bias: float32 `[1 or 2]`; None without a bias.
        softcap: logits become `softcap * tanh(logit / softcap)`.
        description: see `Head`.
    """

    rows: torch.Tensor
    bias: torch.Tensor | None
    softcap: float
    description: str

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


def read_label_ids(
    encode: Callable[[str], Sequence[int]], prefix: str, labels: tuple[str, str]
) -> tuple[int, int]:
    """Return the token ids with which a judge's two labels begin after a prefix.

    Args:
        encode: tokenizes a text without special tokens.
        prefix: text before the label.
        labels: texts of the two labels.

    Raises:
        ModelLoadError: the prefix and a label share a token, or the labels begin alike.
    """
    before = list(encode(prefix)) if prefix else []
    ids = []
    for label in labels:
        tokens = list(encode(prefix + label))
        if tokens[: len(before)] != before or len(tokens) <= len(before):
            raise ModelLoadError(
                f"the tokenizer divides {prefix + label!r} into tokens {tokens} and "
                f"{prefix!r} into {before}, so that no token begins with the label {label!r}; "
                "choose another `verdict_prefix` or `verdict_labels`"
            )
        ids.append(tokens[len(before)])
    if ids[0] == ids[1]:
        raise ModelLoadError(
            f"the labels {labels[0]!r} and {labels[1]!r} begin with the same token {ids[0]} after "
            f"{prefix!r}; choose other `verdict_labels`"
        )
    return ids[0], ids[1]


def read_sign_ids(encode: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    """Return the ids of the tokens `+` and `-`, with which a step model judges a step.

    Args:
        encode: tokenizes a text without special tokens.

    Raises:
        ModelLoadError: the tokenizer has no token for one of them.
    """
    ids = []
    for sign in "+-":
        tokens: Any = list(encode(sign))
        if len(tokens) != 1:
            raise ModelLoadError(
                f"the tokenizer divides {sign!r} into {len(tokens)} tokens, but the model's "
                "judgement of a step is one token; is this the tokenizer of a step model?"
            )
        ids.append(tokens[0])
    return ids[0], ids[1]
