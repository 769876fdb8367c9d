"""Runs the last decoder layer on the readout tokens only.

Only the hidden states at the readout tokens become rewards. The last layer needs keys and values of
every token, but queries, output projection and MLP of the readout tokens only. A layer whose parts
are not those known here runs on all tokens; `rm_core.model.probe` finds out at load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rm_core.attention import get_readouts, run_readout_attention


class ReadoutLayer(nn.Module):
    """Wraps a decoder's last layer and runs it on the readout tokens.

    With `on_all_tokens`, it runs on all tokens and returns only the rows of the readouts.
    """

    def __init__(self, layer: nn.Module, on_all_tokens: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self._on_all_tokens = on_all_tokens

    def forward(self, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Return the layer's output `[1, num_readouts, hidden_size]`; all rows if no readouts.

        `hidden_states` is `[1, num_tokens, hidden_size]`. Unless the layer runs on all tokens,
        `options` has `position_embeddings`: cosine and sine, `[1, num_tokens, head_dim]` each.
        """
        device = hidden_states.device
        readouts = get_readouts(device)
        if readouts is None:
            return self.layer(hidden_states, *args, **options)
        if self._on_all_tokens:
            output = self.layer(hidden_states, *args, **options)
            if isinstance(output, tuple):
                return (output[0][:, readouts], *output[1:])
            return output[:, readouts]
        cos, sin = options["position_embeddings"]
        keys = self.compute_keys_and_values(hidden_states, cos, sin)
        options["position_embeddings"] = cos[:, readouts], sin[:, readouts]
        with run_readout_attention(device, keys):
            return self.layer(hidden_states[:, readouts], *args, **options)

    def compute_keys_and_values(
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
