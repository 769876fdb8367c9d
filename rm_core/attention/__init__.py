"""Which attention runs, and why. Loading sets it on the model; nothing else knows it exists."""

from rm_core.attention.choice import AttentionChoice, Placement, choose_attention

__all__ = ["AttentionChoice", "Placement", "choose_attention"]
