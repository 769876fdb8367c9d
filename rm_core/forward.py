"""Token ids through the model: one batch in, one raw float32 logit per sequence out.

Nothing is padded. Each sequence goes through the decoder on its own, so its hidden states are
those of plain transformers; the head is applied in float32 at the readout token only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rm_core.chat import readout_position
from rm_core.loading import LoadedModel
from rm_core.packing import TokenIds


@torch.inference_mode()
def forward_batch(loaded: LoadedModel, batch: Sequence[TokenIds]) -> list[float]:
    """Raw logits of a batch, in its order.

    Args:
        loaded: the model.
        batch: token ids of each conversation, none empty, none over the model's positions.

    Returns:
        `[len(batch)]` logits; NaN and infinity are passed on as they are.
    """
    # One product per conversation: in a product of matrices the last bits of a row depend on how
    # many others there are, and a reward must not depend on its neighbours.
    logits = [_readout_hidden(loaded, ids).float() @ loaded.head[0] for ids in batch]
    # One transfer from the device per batch, not one per conversation.
    return [float(logit) for logit in torch.stack(logits).cpu()]


def _readout_hidden(loaded: LoadedModel, input_ids: TokenIds) -> torch.Tensor:
    """Hidden state `[hidden_size]` after the final norm, at the readout token."""
    decoder = loaded.model.get_submodule(loaded.model.base_model_prefix)
    row = torch.tensor([input_ids], dtype=torch.long).to(loaded.device, non_blocking=True)
    hidden: torch.Tensor = decoder(input_ids=row, use_cache=False).last_hidden_state
    return hidden[0, readout_position(input_ids, loaded.pad_token_id)]
