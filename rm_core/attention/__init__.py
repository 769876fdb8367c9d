"""Which attention runs, and why; one file for each backend, and the hooks into transformers."""

from rm_core.attention.base import Backend, Scores
from rm_core.attention.hooks import PackedAttention, install
from rm_core.attention.segments import Segment, of_runs, of_tokens
from rm_core.attention.select import AttentionChoice, Placement, choose_attention, make_backend
from rm_core.attention.selfcheck import proven_backend

__all__ = [
    "AttentionChoice",
    "Backend",
    "PackedAttention",
    "Placement",
    "Scores",
    "Segment",
    "choose_attention",
    "install",
    "make_backend",
    "of_runs",
    "of_tokens",
    "proven_backend",
]
