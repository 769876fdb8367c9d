"""Runs the last decoder layer on the readout tokens only.

Only the hidden states at the readout tokens become rewards. The last layer needs keys and values of
every token, but queries, output projection and MLP of the readout tokens only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rm_core.attention import PackedAttention


class ReadoutLayer(nn.Module):
    """Wraps a decoder's last layer and runs it on the readout tokens.

    Args:
        layer: transformers' decoder layer, of any of the three families.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packed: PackedAttention | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Return the layer's output `[1, num_readouts, hidden_size]`; all rows if no readouts.

        Args:
            hidden_states: `[1, num_tokens, hidden_size]`.
            args: further positional arguments of the layer.
            position_embeddings: cosine and sine, `[1, num_tokens, head_dim]` each.
            packed: attention of the batch, with the indices of the readout tokens.
            options: further keyword arguments of the layer.
        """
        if packed is not None and packed.readouts is not None:
            readouts = packed.readouts
            packed = packed.select_readouts(
                self._compute_keys_and_values(hidden_states, *position_embeddings)
            )
            hidden_states = hidden_states[:, readouts]
            cos, sin = position_embeddings
            position_embeddings = cos[:, readouts], sin[:, readouts]
        if packed is not None:
            options["packed"] = packed
        output: torch.Tensor = self.layer(
            hidden_states, *args, position_embeddings=position_embeddings, **options
        )
        return output

    def _compute_keys_and_values(
        self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of all tokens, `[1, num_key_value_heads, num_tokens, head_dim]`.

        The keys are rotated.
        """
        attention: Any = self.layer.self_attn
        normed = self.layer.get_submodule("input_layernorm")(hidden_states)
        shape = (*normed.shape[:-1], -1, attention.head_dim)
        key = attention.k_proj(normed).view(shape)
        if hasattr(attention, "k_norm"):  # Qwen3
            key = attention.k_norm(key)
        key, value = key.transpose(1, 2), attention.v_proj(normed).view(shape).transpose(1, 2)
        left, right = key.chunk(2, dim=-1)
        rotated = torch.cat((-right, left), dim=-1)
        return key * cos.unsqueeze(1) + rotated * sin.unsqueeze(1), value
