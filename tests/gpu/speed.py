"""Measures tokens per second, share of the matrix rate and peak memory, also for padded batches.

Tokens per second count every conversation in full, including shared prefixes; the share of the
matrix rate counts the operations for distinct tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpu.memory_meter import Meter, operations
from gpu.models import PAD
from gpu.sequences import KINDS, Draw, Scale, workload

from rm_core.attention import install_packed_attention
from rm_core.memory import build_full_batch, choose_budget, estimate_bytes_per_token
from rm_core.model.forward import forward_batch
from rm_core.model.loading import LoadedModel
from rm_core.packing import PrefixTree, TokenIds

PADDED_BATCH = 8


class Speed:
    """Measures one model.

    Args:
        model: transformers' model, on its device.
        meter: meter of the device.
        scale: scale of the lengths.
        rate: matrix rate of the device, in operations per second.
    """

    def __init__(self, model: Any, meter: Meter, scale: Scale, rate: float) -> None:
        self._model = model
        self._meter = meter
        self._scale = scale
        self._rate = rate
        self._batches: dict[tuple[str, int], tuple[list[TokenIds], PrefixTree]] = {}

    def batch(self, kind: str, length: int) -> tuple[list[TokenIds], PrefixTree]:
        """Return the conversations and the batch of a cell, the same for every backend."""
        if (kind, length) not in self._batches:
            draw = Draw(self._model.config.vocab_size, self._scale)
            self._batches[kind, length] = workload(kind, length, draw, self._scale)
        return self._batches[kind, length]

    def needed_s(self, tree: PrefixTree) -> float:
        """Estimate the time of a cell: two runs at a fifth of the matrix rate."""
        return 2 * operations(self._model, tree) / (0.2 * self._rate)

    def cell(
        self, loaded: LoadedModel, conversations: list[TokenIds], tree: PrefixTree
    ) -> dict[str, Any]:
        """Measure one batch in the engine."""
        row_multiple = self._scale.row if loaded.deterministic else 1
        seconds = self._meter.seconds(
            lambda: forward_batch(loaded, tree, row_multiple), self._scale.cell_s
        )
        return {
            "tokens_per_s": sum(map(len, conversations)) / seconds,
            "share": operations(self._model, tree) / seconds / self._rate,
            "distinct": tree.num_tokens,
            "seconds": seconds,
            "peak_bytes": self._meter.peak_bytes(),
            "estimate_bytes": self._estimate(max(tree.num_tokens, row_multiple)),
        }

    def full_row(self, loaded: LoadedModel) -> dict[str, Any]:
        """Measure the largest batch that the engine allows, and its memory."""
        config = self._model.config
        budget = choose_budget(None, config, torch.bfloat16, self._meter.device)
        max_tokens = budget.max_batch_tokens // self._scale.divisor
        tree = build_full_batch(max_tokens, config.max_position_embeddings)
        seconds = self._meter.seconds(lambda: forward_batch(loaded, tree), 0.0)
        return {
            "tokens": tree.num_tokens,
            "reason": budget.reason,
            "seconds": seconds,
            "share": operations(self._model, tree) / seconds / self._rate,
            "peak_bytes": self._meter.peak_bytes(),
            "estimate_bytes": self._estimate(tree.num_tokens),
        }

    def padded(self, kind: str, length: int, attention: str) -> dict[str, Any]:
        """Measure plain transformers on conversations of the same kind, padded on the right.

        The batch is halved until it fits into memory.
        """
        draw = Draw(self._model.config.vocab_size, self._scale)
        conversations: list[TokenIds] = []
        while len(conversations) < PADDED_BATCH:
            conversations += KINDS[kind](draw, length)
        conversations = conversations[:PADDED_BATCH]
        self._model.set_attn_implementation(attention)
        try:
            rows = PADDED_BATCH
            while True:
                seconds = self._padded_seconds(conversations, rows)
                if seconds is not None:
                    break
                rows //= 2
                if not rows:
                    raise torch.OutOfMemoryError("one row does not fit into memory")
        finally:
            install_packed_attention(self._model)
        return {
            "tokens_per_s": sum(map(len, conversations)) / seconds,
            "rows": rows,
            "seconds": seconds,
            "peak_bytes": self._meter.peak_bytes(),
        }

    def _padded_seconds(self, conversations: list[TokenIds], rows: int) -> float | None:
        """Return the median time; None if the device ran out of memory."""
        batches = [conversations[i : i + rows] for i in range(0, len(conversations), rows)]
        try:
            return self._meter.seconds(
                lambda: [_padded_batch(self._model, batch) for batch in batches], self._scale.cell_s
            )
        except torch.OutOfMemoryError:
            pass
        self._meter.free_bytes()  # after the handler, which keeps tensors until it ends
        return None

    def _estimate(self, num_tokens: int) -> int:
        return estimate_bytes_per_token(self._model.config, torch.bfloat16) * num_tokens


@torch.inference_mode()
def _padded_batch(model: Any, batch: Sequence[TokenIds]) -> list[float]:
    longest = max(map(len, batch))
    rows = [list(ids) + [PAD] * (longest - len(ids)) for ids in batch]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]
    logits = model(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        use_cache=False,
    ).logits
    rewards: list[float] = logits[:, 0].float().tolist()
    return rewards
