"""The ways to score that are compared: each takes conversations and gives their rewards.

Every way starts at the same messages: rendering and tokenizing are part of each. Plain
transformers is its own classifier with the attention that a user gets who asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from workloads import Conversations

from rm_core import Encoded, RewardScorer
from rm_core.packing import TokenIds


@dataclass(frozen=True, slots=True)
class Scored:
    """What a way gives.

    Attributes:
        rewards: of each conversation, in order.
        num_computed_tokens: tokens that went through the model; None where a way does not tell.
    """

    rewards: list[float]
    num_computed_tokens: int | None = None


Way = Callable[[Conversations], Scored]
BATCH = 8
ONE_BY_ONE = "one by one"
IN_PROCESS = "skyreward, in process"


def in_process(scorer: RewardScorer) -> Way:
    """Ours, called as a library with all conversations."""

    def way(conversations: Conversations) -> Scored:
        encoded = scorer.encoder.encode_all(conversations)
        result = scorer.score_ids([e.input_ids for e in encoded if isinstance(e, Encoded)])
        rewards = [reward for reward in result.outputs if isinstance(reward, float)]
        return Scored(rewards, result.num_computed_tokens)

    return way


class Plain:
    """transformers' own classifier, on the device and in the dtype of a scorer.

    Args:
        scorer: whose checkpoint is loaded, and whose template and tokenizer are used.
        attention: for transformers; by default SDPA, but where a softcap forbids it eager.
    """

    def __init__(self, scorer: RewardScorer, attention: str | None = None) -> None:
        loaded = scorer.loaded_model
        gemma = loaded.checkpoint.family == "gemma2"
        self.attention = attention or ("eager" if gemma else "sdpa")
        self._encoder = scorer.encoder
        self._device = loaded.device
        self.model: Any = (
            AutoModelForSequenceClassification.from_pretrained(
                loaded.checkpoint.path,
                dtype=getattr(torch, scorer.fingerprint.dtype),
                attn_implementation=self.attention,
            )
            .to(self._device)
            .eval()
        )

    def one_by_one(self, conversations: Conversations) -> Scored:
        """Each conversation on its own."""
        return Scored([self.rewards([self._encode(c)])[0] for c in conversations])

    def padded(self, conversations: Conversations) -> Scored:
        """Batches of 8 in the order given, padded on the right."""
        return Scored(self._padded([self._encode(c) for c in conversations]))

    def sorted_padded(self, conversations: Conversations) -> Scored:
        """Batches of 8 in the order of length, padded on the right."""
        sequences = [self._encode(c) for c in conversations]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        rewards = self._padded([sequences[i] for i in order])
        return Scored([reward for _, reward in sorted(zip(order, rewards, strict=True))])

    @torch.inference_mode()
    def rewards(self, rows: Sequence[TokenIds]) -> list[float]:
        """One batch, padded to its longest row; a single row has no mask."""
        if len(rows) == 1:
            return self._logits(input_ids=torch.tensor(rows))
        longest = max(map(len, rows))
        pad = self.model.config.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return self._logits(input_ids=ids, attention_mask=mask)

    def _logits(self, **inputs: torch.Tensor) -> list[float]:
        on_device = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        rewards: list[float] = self.model(**on_device, use_cache=False).logits[:, 0].tolist()
        return rewards

    def _padded(self, sequences: Sequence[TokenIds]) -> list[float]:
        starts = range(0, len(sequences), BATCH)
        return [r for start in starts for r in self.rewards(sequences[start : start + BATCH])]

    def _encode(self, conversation: Any) -> TokenIds:
        encoded = self._encoder.encode(conversation)
        assert isinstance(encoded, Encoded)
        return encoded.input_ids
