"""Parts and sizes of transformers' decoders, whatever their architecture calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from rm_core.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def get_decoder(model: PreTrainedModel) -> Any:
    """Return the stack of layers of a model with or without a head."""
    body = model.base_model
    return getattr(body, "language_model", body)


def get_vision_tower(model: PreTrainedModel) -> nn.Module | None:
    """Return the part that turns images into embeddings; None for a model that reads text only."""
    tower: nn.Module | None = getattr(model.base_model, "visual", None)
    return tower


def get_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's layers, in order."""
    layers = getattr(get_decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelLoadError(
            f"{type(model).__name__} of transformers is not a decoder with a list of layers; only "
            "causal decoders are supported"
        )
    return layers


def get_head_dim(config: Any) -> int:
    """Return the size of an attention head, which some configs leave to be computed."""
    head_dim: int | None = getattr(config, "head_dim", None)
    return head_dim or int(config.hidden_size // config.num_attention_heads)


def get_num_key_value_heads(config: Any) -> int:
    """Return the number of key-value heads; as many as query heads where the config has none."""
    heads: int | None = getattr(config, "num_key_value_heads", None)
    return heads or int(config.num_attention_heads)
